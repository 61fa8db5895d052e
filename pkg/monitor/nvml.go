package monitor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// card is one NVIDIA card.
type card struct {
	device nvml.Device
	say    func(string)
}

// openNVML loads the driver's library and finds the card; nil, with a remark, where either is not there.
func openNVML(device string, say func(string)) *card { return findCard(nvml.New(), device, say) }

func findCard(lib nvml.Interface, device string, say func(string)) *card {
	if r := lib.Init(); r != nvml.SUCCESS {
		say(fmt.Sprintf("NVML (libnvidia-ml.so.1) cannot be used (code %d): no readings of the card", int(r)))
		return nil
	}
	_, number, _ := strings.Cut(device, ":")
	index, _ := strconv.Atoi(number) // "cuda" is cuda:0
	var d nvml.Device
	r := nvml.ERROR_NOT_FOUND
	if visible := strings.Split(os.Getenv("CUDA_VISIBLE_DEVICES"), ","); visible[0] == "" {
		d, r = lib.DeviceGetHandleByIndex(index)
	} else if index < len(visible) {
		if i, err := strconv.Atoi(visible[index]); err == nil {
			d, r = lib.DeviceGetHandleByIndex(i)
		} else {
			d, r = lib.DeviceGetHandleByUUID(visible[index])
		}
	}
	if r != nvml.SUCCESS {
		say(fmt.Sprintf("NVML knows no card %s (code %d): no readings of it", device, int(r)))
		return nil
	}
	return &card{d, say}
}

func (c *card) energy() (float64, bool) {
	millijoules, r := c.device.GetTotalEnergyConsumption()
	return float64(millijoules) / 1e3, c.has("energy", r)
}

func (c *card) free() (bytes int64, ok bool) {
	memory, r := c.device.GetMemoryInfo()
	return int64(memory.Free), r == nvml.SUCCESS
}

func (c *card) read() (values []Value) {
	add := func(name, unit string, value float64, r nvml.Return) {
		if c.has(name, r) {
			values = append(values, Value{Name: name, Value: value, Unit: unit})
		}
	}
	utilisation, r := c.device.GetUtilizationRates()
	add("utilisation", "%", float64(utilisation.Gpu), r)
	memory, r := c.device.GetMemoryInfo()
	add("memory", "MB", float64(memory.Used)/1e6, r)
	milliwatts, r := c.device.GetPowerUsage()
	add("power", "W", float64(milliwatts)/1e3, r)
	celsius, r := c.device.GetTemperature(nvml.TEMPERATURE_GPU)
	add("temperature", "°C", float64(celsius), r)
	megahertz, r := c.device.GetClockInfo(nvml.CLOCK_SM)
	add("clock", "MHz", float64(megahertz), r)
	megahertz, r = c.device.GetClockInfo(nvml.CLOCK_MEM)
	add("memory clock", "MHz", float64(megahertz), r)
	reasons, r := c.device.GetCurrentClocksThrottleReasons()
	if reasons &^= nvml.ClocksEventReasonGpuIdle; c.has("throttled", r) && reasons != 0 {
		values = append(values, Value{Name: "throttled", Value: float64(reasons), Text: "by " + reasonNames(reasons)})
	}
	return values
}

// has says once that a card does not tell something.
func (c *card) has(name string, r nvml.Return) bool {
	if r != nvml.SUCCESS {
		c.say(fmt.Sprintf("the card does not tell %s (NVML code %d)", name, int(r)))
	}
	return r == nvml.SUCCESS
}

func reasonNames(mask uint64) string {
	var names []string
	for _, r := range []struct {
		bit  uint64
		name string
	}{
		{nvml.ClocksEventReasonApplicationsClocksSetting, "clock settings"}, {nvml.ClocksEventReasonSwPowerCap, "power cap"},
		{nvml.ClocksThrottleReasonHwSlowdown, "hardware slowdown"}, {nvml.ClocksEventReasonSyncBoost, "sync boost"},
		{nvml.ClocksEventReasonSwThermalSlowdown, "temperature"}, {nvml.ClocksThrottleReasonHwThermalSlowdown, "temperature (hardware)"},
		{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"}, {nvml.ClocksEventReasonDisplayClockSetting, "display clocks"},
	} {
		if mask&r.bit != 0 {
			names, mask = append(names, r.name), mask&^r.bit
		}
	}
	if mask != 0 {
		names = append(names, fmt.Sprintf("reason %#x", mask))
	}
	return strings.Join(names, ", ")
}
