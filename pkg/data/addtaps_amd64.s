#include "textflag.h"

// func addTapsAVX(dst *float32, blocks int, src, taps *float32, count, step int)
// dst[i] += sum over k of taps[k] src[i + k step/4], i below 32 blocks. Four taps are summed before they are added, as in addTapsPlain, and nothing is
// fused, so the bits are the same.
TEXT ·addTapsAVX(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DI
	MOVQ blocks+8(FP), CX
	MOVQ src+16(FP), SI
	MOVQ taps+24(FP), DX
	MOVQ count+32(FP), R8
	MOVQ step+40(FP), R9

block:
	VMOVUPS (DI), Y0
	VMOVUPS 32(DI), Y1
	VMOVUPS 64(DI), Y2
	VMOVUPS 96(DI), Y3
	MOVQ    SI, R10
	MOVQ    DX, R11
	MOVQ    R8, R12
	CMPQ    R12, $4
	JLT     rest

four:
	VBROADCASTSS (R11), Y12
	VMULPS       (R10), Y12, Y4
	VMULPS       32(R10), Y12, Y5
	VMULPS       64(R10), Y12, Y6
	VMULPS       96(R10), Y12, Y7
	ADDQ         R9, R10
	VBROADCASTSS 4(R11), Y13
	VMULPS       (R10), Y13, Y8
	VMULPS       32(R10), Y13, Y9
	VMULPS       64(R10), Y13, Y10
	VMULPS       96(R10), Y13, Y11
	VADDPS       Y8, Y4, Y4
	VADDPS       Y9, Y5, Y5
	VADDPS       Y10, Y6, Y6
	VADDPS       Y11, Y7, Y7
	ADDQ         R9, R10
	VBROADCASTSS 8(R11), Y12
	VMULPS       (R10), Y12, Y8
	VMULPS       32(R10), Y12, Y9
	VMULPS       64(R10), Y12, Y10
	VMULPS       96(R10), Y12, Y11
	VADDPS       Y8, Y4, Y4
	VADDPS       Y9, Y5, Y5
	VADDPS       Y10, Y6, Y6
	VADDPS       Y11, Y7, Y7
	ADDQ         R9, R10
	VBROADCASTSS 12(R11), Y13
	VMULPS       (R10), Y13, Y8
	VMULPS       32(R10), Y13, Y9
	VMULPS       64(R10), Y13, Y10
	VMULPS       96(R10), Y13, Y11
	VADDPS       Y8, Y4, Y4
	VADDPS       Y9, Y5, Y5
	VADDPS       Y10, Y6, Y6
	VADDPS       Y11, Y7, Y7
	ADDQ         R9, R10
	VADDPS       Y4, Y0, Y0
	VADDPS       Y5, Y1, Y1
	VADDPS       Y6, Y2, Y2
	VADDPS       Y7, Y3, Y3
	ADDQ         $16, R11
	SUBQ         $4, R12
	CMPQ         R12, $4
	JGE          four

rest:
	TESTQ R12, R12
	JZ    done

one:
	VBROADCASTSS (R11), Y12
	VMULPS       (R10), Y12, Y8
	VMULPS       32(R10), Y12, Y9
	VMULPS       64(R10), Y12, Y10
	VMULPS       96(R10), Y12, Y11
	VADDPS       Y8, Y0, Y0
	VADDPS       Y9, Y1, Y1
	VADDPS       Y10, Y2, Y2
	VADDPS       Y11, Y3, Y3
	ADDQ         R9, R10
	ADDQ         $4, R11
	DECQ         R12
	JNZ          one

done:
	VMOVUPS Y0, (DI)
	VMOVUPS Y1, 32(DI)
	VMOVUPS Y2, 64(DI)
	VMOVUPS Y3, 96(DI)
	ADDQ    $128, DI
	ADDQ    $128, SI
	DECQ    CX
	JNZ     block
	VZEROUPPER
	RET

// func addTapsAVX512(dst *float32, blocks int, src, taps *float32, count, step int)
// dst[i] += sum over k of taps[k] src[i + k step/4], i below 64 blocks. Four taps are summed before they are added, as in addTapsPlain, and nothing is
// fused, so the bits are the same.
TEXT ·addTapsAVX512(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DI
	MOVQ blocks+8(FP), CX
	MOVQ src+16(FP), SI
	MOVQ taps+24(FP), DX
	MOVQ count+32(FP), R8
	MOVQ step+40(FP), R9

block:
	VMOVUPS (DI), Z0
	VMOVUPS 64(DI), Z1
	VMOVUPS 128(DI), Z2
	VMOVUPS 192(DI), Z3
	MOVQ    SI, R10
	MOVQ    DX, R11
	MOVQ    R8, R12
	CMPQ    R12, $4
	JLT     rest

four:
	VBROADCASTSS (R11), Z12
	VMULPS       (R10), Z12, Z4
	VMULPS       64(R10), Z12, Z5
	VMULPS       128(R10), Z12, Z6
	VMULPS       192(R10), Z12, Z7
	ADDQ         R9, R10
	VBROADCASTSS 4(R11), Z13
	VMULPS       (R10), Z13, Z8
	VMULPS       64(R10), Z13, Z9
	VMULPS       128(R10), Z13, Z10
	VMULPS       192(R10), Z13, Z11
	VADDPS       Z8, Z4, Z4
	VADDPS       Z9, Z5, Z5
	VADDPS       Z10, Z6, Z6
	VADDPS       Z11, Z7, Z7
	ADDQ         R9, R10
	VBROADCASTSS 8(R11), Z12
	VMULPS       (R10), Z12, Z8
	VMULPS       64(R10), Z12, Z9
	VMULPS       128(R10), Z12, Z10
	VMULPS       192(R10), Z12, Z11
	VADDPS       Z8, Z4, Z4
	VADDPS       Z9, Z5, Z5
	VADDPS       Z10, Z6, Z6
	VADDPS       Z11, Z7, Z7
	ADDQ         R9, R10
	VBROADCASTSS 12(R11), Z13
	VMULPS       (R10), Z13, Z8
	VMULPS       64(R10), Z13, Z9
	VMULPS       128(R10), Z13, Z10
	VMULPS       192(R10), Z13, Z11
	VADDPS       Z8, Z4, Z4
	VADDPS       Z9, Z5, Z5
	VADDPS       Z10, Z6, Z6
	VADDPS       Z11, Z7, Z7
	ADDQ         R9, R10
	VADDPS       Z4, Z0, Z0
	VADDPS       Z5, Z1, Z1
	VADDPS       Z6, Z2, Z2
	VADDPS       Z7, Z3, Z3
	ADDQ         $16, R11
	SUBQ         $4, R12
	CMPQ         R12, $4
	JGE          four

rest:
	TESTQ R12, R12
	JZ    done

one:
	VBROADCASTSS (R11), Z12
	VMULPS       (R10), Z12, Z8
	VMULPS       64(R10), Z12, Z9
	VMULPS       128(R10), Z12, Z10
	VMULPS       192(R10), Z12, Z11
	VADDPS       Z8, Z0, Z0
	VADDPS       Z9, Z1, Z1
	VADDPS       Z10, Z2, Z2
	VADDPS       Z11, Z3, Z3
	ADDQ         R9, R10
	ADDQ         $4, R11
	DECQ         R12
	JNZ          one

done:
	VMOVUPS Z0, (DI)
	VMOVUPS Z1, 64(DI)
	VMOVUPS Z2, 128(DI)
	VMOVUPS Z3, 192(DI)
	ADDQ    $256, DI
	ADDQ    $256, SI
	DECQ    CX
	JNZ     block
	VZEROUPPER
	RET
