package imagesvc

import (
	"fmt"
	"math/rand"
	"strings"
	"syscall"
	"testing"
)

// text makes n bytes that compress about 1:3, as programs and libraries do.
func text(seed int64, n int) string {
	rnd := rand.New(rand.NewSource(seed))
	words := make([]string, 4096)
	for i := range words {
		b := make([]byte, 4+rnd.Intn(12))
		rnd.Read(b)
		words[i] = string(b)
	}
	var sb strings.Builder
	for sb.Len() < n {
		sb.WriteString(words[rnd.Intn(len(words))])
	}
	return sb.String()[:n]
}

// BenchmarkPull pulls an image that unpacks to 200 MB in five layers of 500 files each.
func BenchmarkPull(b *testing.B) {
	for name, pack := range map[string]func(...entry) testLayer{"gzip": gzipLayer, "zstd": zstdLayer} {
		b.Run(name, func(b *testing.B) {
			r := newRegistry(b)
			var layers []testLayer
			for l := range 5 {
				body := text(int64(l), 40<<20)
				var files []entry
				for f := range 500 {
					files = append(files, file(fmt.Sprintf("usr/lib/%d/file%d", l, f), body[f*80<<10:(f+1)*80<<10]))
				}
				layers = append(layers, pack(files...))
			}
			ref := r.simple("big:1", layers...)
			s := open(b)
			var before, after syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			for b.Loop() {
				img := pull(b, s, ref)
				b.StopTimer()
				if err := s.Remove(b.Context(), img.ID.String()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := func(u syscall.Rusage) float64 {
				return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
			}
			b.ReportMetric((cpu(after)-cpu(before))/float64(b.N), "cpu-s/op")
		})
	}
}

// BenchmarkPullPresent pulls an image that is there: one request to the registry.
func BenchmarkPullPresent(b *testing.B) {
	r, s := newRegistry(b), open(b)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	pull(b, s, ref)
	for b.Loop() {
		pull(b, s, ref)
	}
}

func BenchmarkUse(b *testing.B) {
	r, s := newRegistry(b), open(b)
	img := pull(b, s, r.simple("app:1", gzipLayer(file("a", "1"))))
	for b.Loop() {
		if _, err := s.Use(b.Context(), img.ID); err != nil {
			b.Fatal(err)
		}
		s.Release(img.ID)
	}
}
