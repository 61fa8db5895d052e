// onednn.h: the only place that knows oneDNN's API (2.6 and 3.x): GEMM and convolution primitives, cached per shape.
#pragma once
#include "cpu.h"

namespace fx {

// Caps oneDNN's own instruction choice at the tier. Has effect only before its first use in the process.
void onednn_limit(Tier tier);
void onednn_version(char* text, size_t capacity);

}  // namespace fx
