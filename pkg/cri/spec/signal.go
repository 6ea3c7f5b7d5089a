package spec

import (
	"strings"
	"syscall"

	"github.com/moby/sys/signal"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopSignal is the signal that asks a container to end: the one of the request, else of the image, else SIGTERM. An image
// may name it ("SIGQUIT", "quit", "RTMIN+3") or give its number.
func StopSignal(image *ocispec.Image, cfg *runtimeapi.ContainerConfig) (runtimeapi.Signal, error) {
	if s := cfg.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return s, checkStopSignal(s)
	}
	if image == nil || image.Config.StopSignal == "" {
		return runtimeapi.Signal_SIGNAL_SIGTERM, nil
	}
	want, err := signal.ParseSignal(image.Config.StopSignal)
	if err == nil {
		for n := int32(1); n < int32(len(runtimeapi.Signal_name)); n++ {
			if s := runtimeapi.Signal(n); SignalNumber(s) == want {
				return s, nil
			}
		}
	}
	return 0, invalid("STOPSIGNAL of the image", "%s is no signal", show(image.Config.StopSignal))
}

// SignalNumber translates the CRI's enumeration into the kernel's numbers; 0 for what is no signal.
func SignalNumber(s runtimeapi.Signal) syscall.Signal {
	name, ok := strings.CutPrefix(runtimeapi.Signal_name[int32(s)], "SIGNAL_SIG")
	if !ok {
		return 0
	}
	return signal.SignalMap[strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)]
}

func checkStopSignal(s runtimeapi.Signal) error {
	if _, known := runtimeapi.Signal_name[int32(s)]; !known {
		return invalid("stop_signal", "unknown signal %d", s)
	}
	return nil
}
