package board

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/png"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// fields reads a message; the values of repeated fields are in order.
func fields(t *testing.T, b []byte) map[protowire.Number][][]byte {
	t.Helper()
	m := map[protowire.Number][][]byte{}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		n = protowire.ConsumeFieldValue(number, kind, b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		value := b[:n]
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		m[number], b = append(m[number], value), b[n:]
	}
	return m
}

// events reads the records of a file and checks their checksums.
func events(t *testing.T, path string) (list [][]byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 {
		n := binary.LittleEndian.Uint64(b)
		if binary.LittleEndian.Uint32(b[8:]) != maskedCRC(b[:8]) || binary.LittleEndian.Uint32(b[12+n:]) != maskedCRC(b[12:12+n]) {
			t.Fatalf("record %d: checksum", len(list))
		}
		list, b = append(list, b[12:12+n]), b[16+n:]
	}
	return list
}

func write(t *testing.T, folder string) (picture []byte) {
	t.Helper()
	w, err := Create(folder)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewRGBA(image.Rect(0, 0, 5, 3))); err != nil {
		t.Fatal(err)
	}
	if err := w.Scalars(7, []Scalar{{"loss/total", 0.25}, {"lr", 1e-3}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Picture(300, "samples/noise", 5, 3, b.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadBack(t *testing.T) {
	folder := t.TempDir()
	picture := write(t, folder)
	files, _ := filepath.Glob(filepath.Join(folder, "events.out.tfevents.*"))
	if len(files) != 1 {
		t.Fatalf("files %v", files)
	}
	list := events(t, files[0])
	if len(list) != 3 {
		t.Fatalf("%d events", len(list))
	}
	if v := fields(t, list[0])[eventFileVersion]; len(v) != 1 || string(v[0]) != "brain.Event:2" {
		t.Errorf("version %q", v)
	}
	event := fields(t, list[1])
	if step, _ := protowire.ConsumeVarint(event[eventStep][0]); step != 7 {
		t.Errorf("step %d", step)
	}
	values := fields(t, event[eventSummary][0])[summaryValue]
	if len(values) != 2 {
		t.Fatalf("%d values", len(values))
	}
	value := fields(t, values[0])
	if bits := binary.LittleEndian.Uint32(value[valueSimple][0]); string(value[valueTag][0]) != "loss/total" || math.Float32frombits(bits) != 0.25 {
		t.Errorf("value %q %x", value[valueTag][0], bits)
	}
	image := fields(t, fields(t, fields(t, fields(t, list[2])[eventSummary][0])[summaryValue][0])[valueImage][0])
	if width, _ := protowire.ConsumeVarint(image[imageWidth][0]); width != 5 || !bytes.Equal(image[imageEncoded][0], picture) {
		t.Errorf("picture: width %d", width)
	}
}

// TestTensorBoard reads a file with TensorBoard's own reader, where FLUXIR_TENSORBOARD names a Python that has the package tensorboard.
func TestTensorBoard(t *testing.T) {
	python := os.Getenv("FLUXIR_TENSORBOARD")
	if python == "" {
		t.Skip("FLUXIR_TENSORBOARD names no Python with tensorboard")
	}
	folder := t.TempDir()
	write(t, folder)
	out, err := exec.Command(python, "-c", `
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
a = EventAccumulator(sys.argv[1])
a.Reload()
print(a.Tags()["scalars"], a.Scalars("loss/total")[0].step, a.Scalars("loss/total")[0].value, a.Images("samples/noise")[0].width, a.Images("samples/noise")[0].height)
`, folder).CombinedOutput()
	if want := "['loss/total', 'lr'] 7 0.25 5 3"; err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v: %s; want %s", err, out, want)
	}
}
