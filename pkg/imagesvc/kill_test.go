package imagesvc

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if root := os.Getenv("IMAGESVC_TEST_ROOT"); root != "" {
		pullForever(root, os.Getenv("IMAGESVC_TEST_REF"))
	}
	os.Exit(m.Run())
}

// pullForever pulls, uses and removes an image until it is killed.
func pullForever(root, ref string) {
	ctx := context.Background()
	s, err := Open(ctx, Options{Root: root})
	for err == nil {
		var img Image
		if img, err = s.Pull(ctx, ref, Auth{}); err != nil {
			break
		}
		if _, err = s.Use(ctx, img.ID); err != nil {
			break
		}
		s.Release(img.ID)
		err = s.Remove(ctx, ref)
	}
	fmt.Println(err)
	os.Exit(3)
}

// TestKilledAnywhere kills a process at random moments of pull, use and removal. Whatever is listed afterwards is whole, and after its removal nothing is left.
func TestKilledAnywhere(t *testing.T) {
	r, root := newRegistry(t), t.TempDir()
	layers := []testLayer{gzipLayer(file("a/b", noise(1<<20))), zstdLayer(file("a/c", "2"), linkTo("d", "a/b")), plainLayer(file("a/.wh.c", ""), linkTo("e", "a/b"))} // the last one is unpacked through a mount
	ref := r.simple("app:1", layers...)
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for i := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "IMAGESVC_TEST_ROOT="+root, "IMAGESVC_TEST_REF="+ref)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(20+rand.Intn(400)) * time.Millisecond
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		if cmd.ProcessState.Exited() {
			t.Fatal("the process ended by itself: ", out.String())
		}
		s := openAt(t, root)
		images := s.Images()
		t.Logf("round %d, killed after %v: %d images", i, after, len(images))
		for _, img := range images {
			got := tree(t, s, img.ID)
			if len(got) != 4 || got["e"] != got["d"] || got["a/b"] != noise(1<<20) || got["d"] != got["a/b"] {
				t.Errorf("round %d: the image is damaged: %d entries", i, len(got))
			}
			if err := s.Remove(t.Context(), img.ID.String()); err != nil {
				t.Error(err)
			}
		}
		if err := s.Retain(t.Context(), nil); err != nil {
			t.Error(err)
		}
		checkEmpty(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
