package bindings

/*
#cgo noescape fx_philox_words
#cgo nocallback fx_philox_words
#cgo noescape fx_philox_normal
#cgo nocallback fx_philox_normal
#include "fluxir.h"
*/
import "C"

import "unsafe"

// PhiloxWords fills words, whole blocks of 4, with Philox4x32-10 of the counters (block, stream), (block+1, stream), … under key seed. A last incomplete block
// is left alone. See fx_philox_words.
func PhiloxWords(words []uint32, seed, stream, block uint64) {
	C.fx_philox_words((*C.uint32_t)(unsafe.SliceData(words)), C.int64_t(len(words)/4), C.uint64_t(seed), C.uint64_t(stream), C.uint64_t(block))
}

// PhiloxNormal fills out with the standard normals of the elements offset, offset+1, … of the stream. See fx_philox_normal.
func PhiloxNormal(out []float32, seed, stream, offset uint64) {
	C.fx_philox_normal((*C.float)(unsafe.SliceData(out)), C.int64_t(len(out)), C.uint64_t(seed), C.uint64_t(stream), C.uint64_t(offset))
}
