// Package data holds everything that touches pictures before and after the model: image files, resampling, colour correction,
// tiling, degradations, quality metrics and data sets. Pixels are float32 in 0..1; the package imports no bindings, so it builds
// and tests without the C library.
package data
