package sandbox

import (
	"context"
	"slices"
	"testing"
)

// What is read by several at once keeps its order, leaves nothing out but what is nil, and ends with its context.
func TestCollect(t *testing.T) {
	var numbers, want []int
	for i := range 1000 {
		numbers = append(numbers, i)
		if i%3 != 0 {
			want = append(want, i*i)
		}
	}
	square := func(n int) *int {
		if n%3 == 0 {
			return nil
		}
		n *= n
		return &n
	}
	var got []int
	for _, n := range collect(t.Context(), numbers, square) {
		got = append(got, *n)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d numbers, want %d: %v", len(got), len(want), got)
	}
	if none := collect(t.Context(), nil, square); len(none) != 0 {
		t.Errorf("of nothing: %v", none)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if none := collect(ended, numbers, square); len(none) != 0 {
		t.Errorf("%d were read after the end", len(none))
	}
}
