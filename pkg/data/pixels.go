package data

import (
	"image"
	"image/color"
	"math"
)

// unit8 and unit16 scale stored samples to 0..1.
func unit8(v uint8) float32   { return float32(v) / 255 }
func unit16(v uint16) float32 { return float32(v) / 65535 }

// fromGo converts what a codec of format returned; metadata are left empty.
func fromGo(src image.Image, format Format) *Image {
	r := src.Bounds()
	m := New(r.Dx(), r.Dy())
	if o, ok := src.(interface{ Opaque() bool }); !ok || !o.Opaque() {
		m.Alpha = make([]float32, m.W*m.H)
	}
	var row func(y int, rgb, a []float32) // a is nil for opaque pictures
	switch s := src.(type) {
	case *image.YCbCr:
		row = ycbcrRow(s, nil, 0, format)
	case *image.NYCbCrA:
		row = ycbcrRow(&s.YCbCr, s.A, s.AStride, format)
	case *image.Gray:
		row = func(y int, rgb, _ []float32) {
			for x, v := range s.Pix[y*s.Stride:][:m.W] {
				g := unit8(v)
				rgb[3*x], rgb[3*x+1], rgb[3*x+2] = g, g, g
			}
		}
	case *image.NRGBA:
		row = func(y int, rgb, a []float32) {
			p := s.Pix[y*s.Stride:][:4*m.W]
			for x := range m.W {
				rgb[3*x], rgb[3*x+1], rgb[3*x+2] = unit8(p[4*x]), unit8(p[4*x+1]), unit8(p[4*x+2])
			}
			for x := range a {
				a[x] = unit8(p[4*x+3])
			}
		}
	case *image.CMYK:
		row = func(y int, rgb, _ []float32) {
			p := s.Pix[y*s.Stride:][:4*m.W]
			for x := range m.W {
				k := uint32(255 - p[4*x+3])
				for c := range 3 {
					rgb[3*x+c] = unit8(uint8((uint32(255-p[4*x+c])*k + 127) / 255))
				}
			}
		}
	default:
		row = func(y int, rgb, a []float32) { anyRow(src, r.Min.X, r.Min.Y+y, rgb, a) }
	}
	Parallel(m.H, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			var a []float32
			if m.Alpha != nil {
				a = m.Alpha[y*m.W : (y+1)*m.W]
			}
			row(y, m.row(y), a)
		}
	})
	return m
}

// anyRow reads one row of any Go image that starts at (x0, y): palettes, 16 bit, premultiplied alpha.
func anyRow(src image.Image, x0, y int, rgb, a []float32) {
	for x := range len(rgb) / 3 {
		var c color.NRGBA64
		switch v := src.At(x0+x, y).(type) {
		case color.NRGBA64:
			c = v // not through RGBA(): premultiplying would lose the colour under low alpha
		case color.NRGBA:
			c = color.NRGBA64{R: uint16(v.R) * 257, G: uint16(v.G) * 257, B: uint16(v.B) * 257, A: uint16(v.A) * 257}
		default:
			c = color.NRGBA64Model.Convert(v).(color.NRGBA64)
		}
		rgb[3*x], rgb[3*x+1], rgb[3*x+2] = unit16(c.R), unit16(c.G), unit16(c.B)
		if a != nil {
			a[x] = unit16(c.A)
		}
	}
}

// ycbcrRow returns the row reader of a YCbCr picture with optional alpha plane. JPEG is full range, WebP studio range BT.601.
func ycbcrRow(s *image.YCbCr, alpha []uint8, alphaStride int, format Format) func(y int, rgb, a []float32) {
	w := s.Rect.Dx()
	return func(y int, rgb, a []float32) {
		chroma := make([]uint8, 2*w)
		cb, cr := chroma[:w], chroma[w:]
		upsampleRow(cb, s, s.Cb, y, format)
		upsampleRow(cr, s, s.Cr, y, format)
		for x, luma := range s.Y[y*s.YStride:][:w] {
			var r, g, b int
			if format == FormatWebP {
				r, g, b = studioRGB(int(luma), int(cb[x]), int(cr[x]))
			} else {
				r, g, b = jfifRGB(int(luma), int(cb[x])-128, int(cr[x])-128)
			}
			rgb[3*x], rgb[3*x+1], rgb[3*x+2] = unit8(clamp8(r)), unit8(clamp8(g)), unit8(clamp8(b))
		}
		for x := range a {
			a[x] = unit8(alpha[y*alphaStride+x])
		}
	}
}

// upsampleRow writes row y of a chroma plane at luma resolution: the triangle filter of libjpeg ("fancy upsampling") and libwebp
// with their roundings for factors of two, repetition for the rare others and for planes under three samples wide (as libjpeg).
func upsampleRow(dst []uint8, s *image.YCbCr, plane []uint8, y int, format Format) {
	w, h := s.Rect.Dx(), s.Rect.Dy()
	fx, fy := 1, 1
	switch s.SubsampleRatio {
	case image.YCbCrSubsampleRatio422:
		fx = 2
	case image.YCbCrSubsampleRatio420:
		fx, fy = 2, 2
	case image.YCbCrSubsampleRatio440:
		fy = 2
	case image.YCbCrSubsampleRatio411:
		fx = 4
	case image.YCbCrSubsampleRatio410:
		fx, fy = 4, 2
	}
	cw, ch := (w+fx-1)/fx, (h+fy-1)/fy
	near := plane[y/fy*s.CStride:][:cw]
	if fx == 4 || (fx == 1 && fy == 1) || (fx == 2 && cw < 3 && format == FormatJPEG) {
		for x := range dst {
			dst[x] = near[x/fx]
		}
		return
	}
	far := near
	if fy == 2 {
		far = plane[min(max(y/2-1+2*(y&1), 0), ch-1)*s.CStride:][:cw]
	}
	for x := range dst {
		i, j := x/fx, x/fx
		if fx == 2 {
			j = min(max(x/2-1+2*(x&1), 0), cw-1)
		}
		c, l, v, d := int(near[i]), int(near[j]), int(far[i]), int(far[j])
		switch {
		case format == FormatWebP:
			dst[x] = uint8(((c+l+v+d+8+2*(l+v))>>3 + c) >> 1)
		case fx == 2 && fy == 2:
			dst[x] = uint8((9*c + 3*l + 3*v + d + 8 - x&1) >> 4)
		case fx == 2:
			dst[x] = uint8((3*c + l + 1 + x&1) >> 2)
		default:
			dst[x] = uint8((3*c + v + 1 + y&1) >> 2)
		}
	}
}

// jfifRGB is libjpeg's fixed-point conversion; cb and cr are centred on 0.
func jfifRGB(y, cb, cr int) (r, g, b int) {
	const half = 1 << 15
	return y + (91881*cr+half)>>16, y + (-22554*cb-46802*cr+half)>>16, y + (116130*cb+half)>>16
}

// studioRGB is libwebp's fixed-point conversion (luma 16..235).
func studioRGB(y, cb, cr int) (r, g, b int) {
	l := y * 19077 >> 8
	return (l + cr*26149>>8 - 14234) >> 6, (l - cb*6419>>8 - cr*13320>>8 + 8708) >> 6, (l + cb*33050>>8 - 17685) >> 6
}

func clamp8(v int) uint8 { return uint8(min(max(v, 0), 255)) }

// quantise rounds the clamped value v in 0..1 half to even on a scale of 0..top.
func quantise(v float32, top float64) uint16 {
	return uint16(math.RoundToEven(min(max(float64(v), 0), 1) * top))
}

// luma is Rec. 601 luma of full-range RGB; equal channels give that value.
func luma(rgb []float32) float32 {
	if rgb[0] == rgb[1] && rgb[1] == rgb[2] {
		return rgb[0]
	}
	return 0.299*rgb[0] + 0.587*rgb[1] + 0.114*rgb[2]
}

// toGo converts m to 8 or 16 bit: *image.Gray or *image.Gray16 for opaque grey, else *image.NRGBA or *image.NRGBA64.
func toGo(m *Image, depth int, gray bool) image.Image {
	rect := image.Rect(0, 0, m.W, m.H)
	channels, top, bytes := 4, 255.0, depth/8
	if depth == 16 {
		top = 65535
	}
	if gray && m.Alpha == nil {
		channels = 1
	}
	stride := m.W * channels * bytes
	pix := make([]uint8, stride*m.H)
	put := func(p []uint8, i int, v float32) {
		q := quantise(v, top)
		if bytes == 1 {
			p[i] = uint8(q)
			return
		}
		p[2*i], p[2*i+1] = uint8(q>>8), uint8(q)
	}
	Parallel(m.H, func(lo, hi int) {
		for y := lo; y < hi; y++ {
			p := pix[y*stride : (y+1)*stride]
			for x := range m.W {
				rgb := m.Pix[3*(y*m.W+x):][:3]
				if channels == 1 {
					put(p, x, luma(rgb))
					continue
				}
				for c, v := range rgb {
					if gray {
						v = luma(rgb)
					}
					put(p, 4*x+c, v)
				}
				a := float32(1)
				if m.Alpha != nil {
					a = m.Alpha[y*m.W+x]
				}
				put(p, 4*x+3, a)
			}
		}
	})
	switch {
	case channels == 1 && depth == 8:
		return &image.Gray{Pix: pix, Stride: stride, Rect: rect}
	case channels == 1:
		return &image.Gray16{Pix: pix, Stride: stride, Rect: rect}
	case depth == 8:
		return &image.NRGBA{Pix: pix, Stride: stride, Rect: rect}
	}
	return &image.NRGBA64{Pix: pix, Stride: stride, Rect: rect}
}
