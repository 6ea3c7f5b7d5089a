package cri

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// endpoint is an RPC as the gRPC server calls it, without what would catch a panic.
type endpoint struct {
	name string
	call func(s *Server, data []byte) error
}

func endpoints() (all []endpoint) {
	for _, service := range []*grpc.ServiceDesc{&runtimeapi.RuntimeService_ServiceDesc, &runtimeapi.ImageService_ServiceDesc} {
		for _, m := range service.Methods {
			all = append(all, endpoint{m.MethodName, func(s *Server, data []byte) error {
				_, err := m.Handler(s, context.Background(), func(req any) error { return proto.Unmarshal(data, req.(proto.Message)) }, nil)
				return err
			}})
		}
		for _, m := range service.Streams {
			all = append(all, endpoint{m.StreamName, func(s *Server, data []byte) error {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				return m.Handler(s, &fakeStream{ctx: ctx, data: data})
			}})
		}
	}
	return all
}

// fakeStream gives one request and takes all answers.
type fakeStream struct {
	ctx  context.Context
	data []byte
}

func (f *fakeStream) Context() context.Context     { return f.ctx }
func (f *fakeStream) RecvMsg(m any) error          { return proto.Unmarshal(f.data, m.(proto.Message)) }
func (f *fakeStream) SendHeader(metadata.MD) error { return nil }
func (f *fakeStream) SetHeader(metadata.MD) error  { return nil }
func (f *fakeStream) SetTrailer(metadata.MD)       {}
func (f *fakeStream) SendMsg(m any) error {
	_, err := proto.Marshal(m.(proto.Message))
	return err
}

func fuzzedServer(t testing.TB) *Server {
	log := logrus.New()
	log.SetOutput(io.Discard)
	sandboxes := testSandboxes()
	// Objects as bare as records can be.
	sandboxes.pods = append(sandboxes.pods, sandbox.Pod{ID: "bare", State: sandbox.PodReady})
	sandboxes.containers = append(sandboxes.containers, sandbox.Container{ID: "bare", PodID: "bare", State: sandbox.ContainerRunning})
	sandboxes.events <- sandbox.Event{Pod: "bare"}
	close(sandboxes.events)
	s, err := New(Options{Sandboxes: sandboxes, Images: testImages(), Network: &fakeNetwork{}, Config: func() any { return nil }, Log: logrus.NewEntry(log)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// filled sets every field of a message, to a depth, so that what is there is as odd as what is missing.
func filled(m protoreflect.Message, text string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		isMessage := f.Kind() == protoreflect.MessageKind
		switch {
		case isMessage && depth == 0:
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(text).MapKey(), protoreflect.ValueOfString(text))
		case isMessage && f.IsList():
			list := m.Mutable(f).List()
			filled(list.AppendMutable().Message(), text, depth-1)
			list.AppendMutable()
		case isMessage:
			filled(m.Mutable(f).Message(), text, depth-1)
		case f.IsList():
			m.Mutable(f).List().Append(scalar(f, text))
		default:
			m.Set(f, scalar(f, text))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor, text string) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(-7)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-1 << 31)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-1 << 63)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1<<32 - 1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1<<64 - 1)
	}
	return f.Default()
}

// requestOf is an empty request of an RPC.
func requestOf(rpc string) proto.Message {
	for _, service := range []string{"RuntimeService", "ImageService"} {
		methods := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile().Services().ByName(protoreflect.Name(service)).Methods()
		if m := methods.ByName(protoreflect.Name(rpc)); m != nil {
			message, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
			if err != nil {
				panic(err)
			}
			return message.New().Interface()
		}
	}
	panic("no RPC " + rpc)
}

// FuzzRequests: no request makes an RPC panic or answer without a gRPC code, and every RPC is our own.
func FuzzRequests(f *testing.F) {
	all := endpoints()
	if len(all) != 37+6 {
		f.Fatalf("%d RPCs, want those of cri-api v0.37", len(all))
	}
	for i, e := range all {
		f.Add(uint8(i), []byte{})
		for _, text := range []string{"", "a", "bare", "..", "/", "c\x00\n", strings.Repeat("x", 1000), imageID} {
			m := requestOf(e.name)
			filled(m.ProtoReflect(), text, 5)
			data, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), data)
		}
	}
	s := fuzzedServer(f)
	f.Fuzz(func(t *testing.T, i uint8, data []byte) {
		e := all[int(i)%len(all)]
		err := toStatus(e.call(s, data))
		got := status.Convert(err)
		if got.Code() == codes.Internal || strings.HasPrefix(got.Message(), "method "+e.name) {
			t.Errorf("%s: %v", e.name, err)
		}
		m := requestOf(e.name)
		if proto.Unmarshal(data, m) == nil {
			if id := objectID(m); len(id) > maxLoggedID {
				t.Errorf("%s: a line of the log has an ID of %d bytes", e.name, len(id))
			}
		}
	})
}

// What any CRI message makes of verbose info is JSON.
func TestInfoOfAnything(t *testing.T) {
	for _, text := range []string{"", "\xff\xfe", `"},{"`, "\u2028"} {
		pod, container := &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
		filled(pod.ProtoReflect(), strings.ToValidUTF8(text, "?"), 5)
		filled(container.ProtoReflect(), strings.ToValidUTF8(text, "?"), 5)
		container.Envs = append(container.Envs, &runtimeapi.KeyValue{Key: "k", Value: []byte(text)}, nil)
		s := fuzzedServer(t)
		info, err := podInfo(sandbox.Pod{Config: pod})
		if err != nil || !json.Valid([]byte(info["info"])) {
			t.Errorf("pod with %q: %v, %v", text, info, err)
		}
		info, err = s.containerInfo(sandbox.Container{Config: container})
		if err != nil || !json.Valid([]byte(info["info"])) {
			t.Errorf("container with %q: %v, %v", text, info, err)
		}
	}
}
