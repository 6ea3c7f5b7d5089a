package spec

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The same device may come by field and by annotation: the kubelet sends both.
func TestCDIDevices(t *testing.T) {
	got, err := CDIDevices(&runtimeapi.ContainerConfig{
		CDIDevices: []*runtimeapi.CDIDevice{{Name: "v.example/gpu=1"}, {Name: "v.example/gpu=0"}, {Name: "v.example/gpu=1"}},
		Annotations: map[string]string{
			"cdi.k8s.io/b": "v.example/nic=x",
			"cdi.k8s.io/a": "v.example/gpu=0,v.example/gpu=2",
			"cdi.k8s":      "nonsense",
		},
	})
	want := []string{"v.example/gpu=1", "v.example/gpu=0", "v.example/gpu=2", "v.example/nic=x"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}
