// Package board writes TensorBoard's event files: scalars and pictures by step. The format: records of a length (uint64), its masked CRC-32C, the bytes of an
// Event message, their masked CRC-32C, all little-endian (tensorflow: core/lib/io/record_writer.h, core/util/event.proto, core/framework/summary.proto).
package board

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of the messages.
const (
	eventWallTime, eventStep, eventFileVersion, eventSummary           = 1, 2, 3, 5
	summaryValue                                                       = 1
	valueTag, valueSimple, valueImage                                  = 1, 2, 4
	imageHeight, imageWidth, imageColours, imageEncoded, coloursPerRGB = 1, 2, 3, 4, 3
)

// Writer appends events to one file. Every call reaches the file before it returns.
type Writer struct{ file *os.File }

// Create starts an event file in a folder; TensorBoard reads all of a folder together.
func Create(folder string) (*Writer, error) {
	now := time.Now()
	f, err := os.OpenFile(filepath.Join(folder, fmt.Sprintf("events.out.tfevents.%d.%d.fluxir", now.Unix(), os.Getpid())), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	w := &Writer{file: f}
	event := protowire.AppendString(protowire.AppendTag(wallTime(now), eventFileVersion, protowire.BytesType), "brain.Event:2")
	return w, w.record(event)
}

// Close ends the file.
func (w *Writer) Close() error { return w.file.Close() }

// Scalar is one number to show.
type Scalar struct {
	Tag   string
	Value float64
}

// Scalars writes numbers of a step.
func (w *Writer) Scalars(step int64, scalars []Scalar) error {
	var summary []byte
	for _, s := range scalars {
		value := protowire.AppendString(protowire.AppendTag(nil, valueTag, protowire.BytesType), s.Tag)
		value = protowire.AppendFixed32(protowire.AppendTag(value, valueSimple, protowire.Fixed32Type), math.Float32bits(float32(s.Value)))
		summary = protowire.AppendBytes(protowire.AppendTag(summary, summaryValue, protowire.BytesType), value)
	}
	return w.summary(step, summary)
}

// Picture writes an encoded (PNG) picture of a step.
func (w *Writer) Picture(step int64, tag string, width, height int, encoded []byte) error {
	var image []byte
	for field, v := range map[protowire.Number]int{imageHeight: height, imageWidth: width, imageColours: coloursPerRGB} {
		image = protowire.AppendVarint(protowire.AppendTag(image, field, protowire.VarintType), uint64(v))
	}
	image = protowire.AppendBytes(protowire.AppendTag(image, imageEncoded, protowire.BytesType), encoded)
	value := protowire.AppendString(protowire.AppendTag(nil, valueTag, protowire.BytesType), tag)
	value = protowire.AppendBytes(protowire.AppendTag(value, valueImage, protowire.BytesType), image)
	return w.summary(step, protowire.AppendBytes(protowire.AppendTag(nil, summaryValue, protowire.BytesType), value))
}

func (w *Writer) summary(step int64, summary []byte) error {
	event := protowire.AppendVarint(protowire.AppendTag(wallTime(time.Now()), eventStep, protowire.VarintType), uint64(step))
	return w.record(protowire.AppendBytes(protowire.AppendTag(event, eventSummary, protowire.BytesType), summary))
}

func wallTime(now time.Time) []byte {
	seconds := float64(now.UnixNano()) / 1e9
	return protowire.AppendFixed64(protowire.AppendTag(nil, eventWallTime, protowire.Fixed64Type), math.Float64bits(seconds))
}

// record frames one event.
func (w *Writer) record(event []byte) error {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(event)))
	b = binary.LittleEndian.AppendUint32(b, maskedCRC(b))
	b = append(b, event...)
	b = binary.LittleEndian.AppendUint32(b, maskedCRC(event))
	_, err := w.file.Write(b)
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// maskedCRC is the checksum of the record format: rotated and shifted, because data that hold their own CRC are a bad case for it.
func maskedCRC(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}
