// Package monitor reads what a device is doing while it works: an NVIDIA card through NVML, which is loaded only when asked for, the CPU from /proc.
// What a machine cannot tell is said once and left out.
package monitor

import (
	"fmt"
	"strings"
	"time"
)

// Value is one reading.
type Value struct {
	Name  string // rss, cores, clock, load; utilisation, memory, power, temperature, clock, throttled
	Value float64
	Unit  string // of Value, as printed: MB, MHz, W, °C, %
	Text  string // in place of the number, where that is a code: reasons of throttling
}

// String is the reading for a progress line.
func (v Value) String() string {
	if v.Text != "" {
		return v.Name + " " + v.Text
	}
	if v.Unit == "" {
		return fmt.Sprintf("%s %.2f", v.Name, v.Value)
	}
	return fmt.Sprintf("%s %.0f %s", v.Name, v.Value, v.Unit)
}

// source is one kind of device. energy is a counter in joules, or ok false.
type source interface {
	read() []Value
	energy() (joules float64, ok bool)
}

// Monitor watches one device.
type Monitor struct {
	source source
	watts  float64
	last   time.Time
	joules float64
}

// Open watches a device by its name in bindings, "cpu" or "cuda:N". watts, where it is not 0, is the power that the energy is computed from where no counter
// can be read. say gets remarks about what cannot be read, each once.
func Open(device string, watts float64, say func(string)) *Monitor {
	once := onlyOnce(say)
	m := &Monitor{watts: watts, last: time.Now()}
	if strings.HasPrefix(device, "cuda") {
		if card := openNVML(device, once); card != nil {
			m.source = card
		}
	}
	if m.source == nil {
		m.source = openProc("/proc", once)
	}
	var ok bool
	if m.joules, ok = m.source.energy(); !ok && watts == 0 {
		once("no energy counter: name the power of the machine with --watts to have kWh in the ledger")
	}
	return m
}

// Card watches a card; nil, with a remark, where NVML cannot read it or the device is no card.
func Card(device string, say func(string)) *Monitor {
	if !strings.HasPrefix(device, "cuda") {
		return nil
	}
	if card := openNVML(device, onlyOnce(say)); card != nil {
		return &Monitor{source: card, last: time.Now()}
	}
	return nil
}

// onlyOnce lets each remark through once.
func onlyOnce(say func(string)) func(string) {
	said := map[string]bool{}
	return func(text string) {
		if !said[text] {
			said[text] = true
			say(text)
		}
	}
}

// Values returns the readings now.
func (m *Monitor) Values() []Value { return m.source.read() }

// Read returns the readings now and the energy since the call before it, in kWh (0: unknown).
func (m *Monitor) Read() (values []Value, kWh float64) {
	now := time.Now()
	joules, ok := m.source.energy()
	used := joules - m.joules
	if !ok || used < 0 {
		used = m.watts * now.Sub(m.last).Seconds()
	}
	m.joules, m.last = joules, now
	return m.source.read(), used / 3.6e6
}

// Free is the memory of a device that is not in use, where it can be read.
func Free(device string) (bytes int64, ok bool) {
	quiet := func(string) {}
	if !strings.HasPrefix(device, "cuda") {
		return (&proc{root: "/proc", say: quiet}).freeHost()
	}
	if c := openNVML(device, quiet); c != nil {
		return c.free()
	}
	return 0, false
}
