package photos

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/fluxir/fluxir/pkg/data"
)

// TestSourceTable holds the embedded table against the counts that it was made to.
func TestSourceTable(t *testing.T) {
	all, err := parseSources(sourcesText)
	if err != nil {
		t.Fatal(err)
	}
	kinds, groups, names := map[string]int{}, map[string]int{}, map[string]bool{}
	for _, s := range all {
		kinds[s.kind]++
		groups[s.group()]++
		if names[s.name()] {
			t.Errorf("two photographs are called %s", s.name())
		}
		names[s.name()] = true
	}
	if kinds[kindDeb] != 190 || kinds[kindEval] != 5 || groups["permissive"] != 123 {
		t.Errorf("%v %v, want 190 from Debian (123 permissive) and 5 for evaluation", kinds, groups)
	}
	list, err := wanted(Options{Permissive: true, Stock: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 123+5 {
		t.Errorf("permissive recipe has %d photographs, want 128", len(list))
	}
	for _, text := range []string{"deb a MIT", "deb a MIT shrink", "rpm a MIT keep", "  dir", "deb a MIT keep\n    file"} {
		if _, err := parseSources(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

// makeRCC builds a Qt resource container, version 3, with the files dir/name; every second one is compressed.
func makeRCC(dir string, files map[string][]byte) []byte {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	var tree, blobs, labels []byte
	be := binary.BigEndian
	label := func(s string) uint32 {
		at := len(labels)
		units := utf16.Encode([]rune(s))
		labels = be.AppendUint16(labels, uint16(len(units)))
		labels = be.AppendUint32(labels, 0)
		for _, u := range units {
			labels = be.AppendUint16(labels, u)
		}
		return uint32(at)
	}
	node := func(name uint32, flags uint16, a, b uint32) {
		tree = be.AppendUint32(tree, name)
		tree = be.AppendUint16(tree, flags)
		tree = be.AppendUint32(tree, a)
		tree = be.AppendUint32(tree, b)
		tree = append(tree, make([]byte, 8)...)
	}
	node(0, 2, 1, 1)
	node(label(dir), 2, uint32(len(names)), 2)
	for i, n := range names {
		body, flags := files[n], uint16(0)
		if i%2 == 1 {
			var z bytes.Buffer
			z.Write(be.AppendUint32(nil, uint32(len(body))))
			w := zlib.NewWriter(&z)
			w.Write(body)
			w.Close()
			body, flags = z.Bytes(), 1
		}
		node(label(n), flags, 0, uint32(len(blobs)))
		blobs = be.AppendUint32(blobs, uint32(len(body)))
		blobs = append(blobs, body...)
	}
	out := be.AppendUint32([]byte("qres"), 3)
	for _, at := range []int{24, 24 + len(tree), 24 + len(tree) + len(blobs), 0} {
		out = be.AppendUint32(out, uint32(at))
	}
	return slices.Concat(out, tree, blobs, labels)
}

func TestReadRCC(t *testing.T) {
	want := map[string][]byte{"a.webp": []byte("stored"), "b.webp": bytes.Repeat([]byte("packed "), 99), "ü": {}}
	raw := makeRCC("res", want)
	got, err := readRCC(raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
	for n, b := range want {
		if !bytes.Equal(got["res/"+n], b) {
			t.Errorf("%s: %q", n, got["res/"+n])
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "magic": []byte("not a container at all"), "cut": raw[:60]} {
		if _, err := readRCC(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// picture encodes a w by h gradient whose brightest value is top.
func picture(t *testing.T, format string, w, h, top int) []byte {
	t.Helper()
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		v := uint8(i * top / (w * h))
		m.SetNRGBA(i%w, i/w, color.NRGBA{v, v, v / 2, 255})
	}
	var buf bytes.Buffer
	var err error
	if format == "png" {
		err = png.Encode(&buf, m)
	} else {
		err = jpeg.Encode(&buf, m, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestLargestJPEG(t *testing.T) {
	raw := slices.Concat([]byte("EDJ\xff\xd8\xff\xd8\xff"), picture(t, "jpeg", 20, 10, 255), []byte{0xFF, 0xD8, 0xFF, 0xE0},
		picture(t, "jpeg", 60, 40, 255), picture(t, "jpeg", 30, 10, 255))
	best, err := largestJPEG(raw)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := data.Decode(bytes.NewReader(best)); err != nil || m.W != 60 || m.H != 40 {
		t.Errorf("%v, %v, want 60x40", m, err)
	}
	if _, err := largestJPEG([]byte("nothing here")); err == nil {
		t.Error("no JPEG: no error")
	}
}

// TestSplit checks the shares, that duplicates go, and that more sources of another group move nothing.
func TestSplit(t *testing.T) {
	make50 := func(licence string, from int) (items []item) {
		for i := range 50 {
			items = append(items, item{source: source{kind: kindDeb, pkg: "p", licence: licence, file: fmt.Sprint(from+i, ".png")},
				hash: fmt.Sprintf("%04d", (i*37+from)%10000)})
		}
		return items
	}
	small := make50("PD", 0)
	split(small)
	big := append(make50("GPL-2+", 1000), make50("PD", 0)...)
	big = append(big, item{source: source{licence: "PD", file: "twice.png"}, hash: big[60].hash})
	split(big)
	count := map[string]int{}
	for i, it := range small {
		count[it.split]++
		if big[50+i].split != it.split {
			t.Errorf("%s moved from %s to %s", it.file, it.split, big[50+i].split)
		}
	}
	if count["val"] != 5 || count["train"] != 45 {
		t.Errorf("%v, want 45 and 5", count)
	}
	if last := big[100]; last.drop == "" || last.split != "" {
		t.Error("the duplicate stayed")
	}
}

// TestBuild runs the whole collection on packages that lie in the cache already.
func TestBuild(t *testing.T) {
	root := t.TempDir()
	o := Options{Dir: filepath.Join(root, "photos"), Cache: filepath.Join(root, "cache")}
	write := func(path string, b []byte) {
		path = filepath.Join(o.Cache, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one/usr/share/doc/one/copyright", []byte("licence of one"))
	write("one/pics/plain.png", picture(t, "png", 64, 48, 255))
	write("one/pics/dark.png", picture(t, "png", 64, 48, 70))
	write("one/pics/bad.png", []byte("this is no picture"))
	write("one/pics/cut.jpg", picture(t, "jpeg", 64, 64, 255)[:700])
	write("one/pics/many.edj", append([]byte("head"), picture(t, "jpeg", 90, 70, 255)...))
	write("one/box.rcc", makeRCC("res", map[string][]byte{"README": []byte("by me"), "in.png": picture(t, "png", 33, 31, 255)}))
	write("two/usr/share/doc/two/copyright", []byte("licence of two"))
	write("two/judge.png", picture(t, "png", 20, 20, 254))
	sources, err := parseSources(`deb one PD keep
  pics
    plain.png dark.png bad.png cut.jpg many.edj absent.png
deb one CC0-1.0 halve
  box.rcc!res
    in.png
eval two PD keep
  .
    judge.png
`)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second run finds everything done
		sum, err := build(context.Background(), o, sources)
		if err != nil {
			t.Fatal(err)
		}
		if sum.Train+sum.Val != 3 || sum.Eval != 1 || len(sum.Dropped) != 4 {
			t.Fatalf("%+v, want 3 and 1 photographs and 4 dropped", sum)
		}
	}
	var sizes []string
	for _, set := range []string{"train", "val"} {
		p, err := data.OpenPack(filepath.Join(o.Dir, set+".fxp"))
		if err != nil {
			t.Fatal(err)
		}
		for _, ph := range p.Photos {
			sizes = append(sizes, fmt.Sprintf("%s %dx%d", ph.Name, ph.W, ph.H))
		}
		p.Close()
	}
	slices.Sort(sizes)
	if got, want := strings.Join(sizes, ", "), "one_box_in 16x15, one_many 90x70, one_plain 64x48"; got != want {
		t.Errorf("photographs %s, want %s", got, want)
	}
	credits, err := os.ReadFile(filepath.Join(o.Dir, "CREDITS"))
	if err != nil || strings.Count(string(credits), "\n") != 2+4 || !strings.Contains(string(credits), "CC0-1.0\tone\tbox.rcc!res/in.png") {
		t.Errorf("credits, %v:\n%s", err, credits)
	}
	for name, want := range map[string]string{"one": "licence of one", "one_box": "by me"} {
		if b, err := os.ReadFile(filepath.Join(o.Dir, "licences", name+".txt")); err != nil || string(b) != want {
			t.Errorf("licence %s: %q, %v", name, b, err)
		}
	}
	// A smaller recipe removes what it does not name.
	sum, err := build(context.Background(), o, sources[:1])
	if err != nil || sum.Train+sum.Val != 1 || sum.Eval != 0 {
		t.Errorf("smaller recipe: %+v, %v", sum, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := build(ctx, o, sources); err == nil {
		t.Error("cancelled: no error")
	}
}

// TestFetchFailure checks that a program that fails is reported in one line and leaves no half package behind.
func TestFetchFailure(t *testing.T) {
	bin, cache := t.TempDir(), t.TempDir()
	script := "#!/bin/sh\necho first line\necho E: no such package >&2\nexit 100\n"
	if err := os.WriteFile(filepath.Join(bin, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	_, err := fetchPackage(context.Background(), cache, kindDeb, "ghost")
	if err == nil || !strings.Contains(err.Error(), "E: no such package") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q", err)
	}
	if left, err := os.ReadDir(cache); err != nil || len(left) != 0 {
		t.Errorf("%d files left in the cache", len(left))
	}
}
