package imagesvc

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Pulls are counted by how they end, and the bytes of layers as registries send them.
// rows: D-181
func TestPullMetrics(t *testing.T) {
	r, s := newRegistry(t), open(t)
	one := gzipLayer(file("one", "1"))
	ref := r.simple("counted:1", one)
	ok, bytes := testutil.ToFloat64(pulls.WithLabelValues("ok")), testutil.ToFloat64(pulledBytes)
	pull(t, s, ref)
	pull(t, s, ref) // brings nothing new
	if _, err := s.Pull(t.Context(), r.host+"/nothing:1", Auth{}); err == nil {
		t.Fatal("nothing was pulled")
	}
	if got := testutil.ToFloat64(pulls.WithLabelValues("ok")) - ok; got != 2 {
		t.Errorf("%v pulls have ended well, want 2", got)
	}
	if got := testutil.ToFloat64(pulls.WithLabelValues("not found")); got < 1 {
		t.Errorf("%v pulls have found nothing", got)
	}
	if got, want := testutil.ToFloat64(pulledBytes)-bytes, float64(len(one.blob)); got != want {
		t.Errorf("%v bytes were counted, want %v", got, want)
	}
}
