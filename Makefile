# criserver. As root on a Debian machine with Go:
#
#   make demo       install what is missing, build, and run a pod before your eyes
#   make test       everything: unit tests, black-box suite, critest; the last line counts
#
#   make build      bin/criserver and bin/criserver-shim
#   make unit       the tests beside the code, of all modules
#   make blackbox   the daemon as its users meet it: pods, faults, restarts        RUN=regexp ARGS='...'
#   make critest    the Kubernetes project's own conformance tests                  RUN=regexp
#   make bench      how fast and how small it is             PEER=unix:///... beside another runtime, CASES=, ROUNDS=, SCALE=, OUT=dir, DOC=file
#   make lint       gofmt, go vet, and the rules of hack/
#   make install    into $(DESTDIR)$(PREFIX), with unit and configuration
#   make clean      what was built; `make distclean` forgets the downloads too
#
# What is needed is installed: Debian packages by apt-get, tools from the Go module proxy into $(CACHE).

MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash -o pipefail
.DELETE_ON_ERROR:

CACHE   ?= $(CURDIR)/.cache
PREFIX  ?= /usr/local
GIT     := git -c safe.directory='*'
VERSION ?= $(shell $(GIT) describe --tags --match 'v*' --dirty 2>/dev/null || echo v0.1.0-dev+$$($(GIT) describe --always --dirty 2>/dev/null))
RUN     ?=
ARGS    ?=

# The work tree may belong to somebody else, and root may have no git identity: the version comes from above.
export GOFLAGS ?= -buildvcs=false

LDFLAGS    := -s -w -X main.version=$(VERSION)
TAGS       := nri_no_wasm
SHIM_TAGS  := netgo osusergo seccomp runc_nocriu
C_PROGRAMS := pkg/libct/shim/podinit/init.bin pkg/libct/shim/execinit/init.bin

.PHONY: help build deps-build deps-demo deps-test unit blackbox critest bench test demo lint tools crictl images install clean distclean
help:
	@sed -n 's/^#\( \|$$\)//p' Makefile | sed '/^What is needed/q'

# ---- build ----

build: bin/criserver bin/criserver-shim

# Go knows best what has changed; these rules always ask it.
.PHONY: bin/criserver bin/criserver-shim
bin/criserver: $(C_PROGRAMS)
	CGO_ENABLED=0 go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $@ ./cmd/criserver

bin/criserver-shim: $(C_PROGRAMS)
	CGO_ENABLED=1 go build -trimpath -tags '$(SHIM_TAGS)' -ldflags '$(LDFLAGS) -linkmode external -extldflags -static' -o $@ ./cmd/criserver-shim

# The C programs that are embedded.
%/init.bin: %/init.c pkg/libct/shim/system.h $(wildcard pkg/libct/shim/*init/*init.go)
	go generate ./$*

# ---- what tests and demo need ----

DEBS_BUILD := gcc libc6-dev
DEBS_RUN   := iptables nftables iproute2 conntrack
DEBS_DEMO  := $(DEBS_BUILD) $(DEBS_RUN) busybox-static
DEBS_TEST  := $(DEBS_DEMO) make bzip2 dpkg-dev libseccomp-dev pkg-config util-linux procps apparmor

deps-build deps-demo deps-test: deps-%:
	@hack/deps.sh $(DEBS_$(shell echo $* | tr a-z A-Z))

CRICTL := $(CACHE)/bin/crictl
CRITEST := $(CACHE)/bin/critest
IMAGES := $(CACHE)/images

tools: $(CRICTL) $(CRITEST)
crictl: $(CRICTL)
$(CRICTL): test/tools/go.mod test/tools/build
	test/tools/build crictl $@
# critest pulls one image by a digest that only upstream's bytes have; ours is put in its place.
$(CRITEST): test/tools/go.mod test/tools/build $(IMAGES)/critest/index.json
	test/tools/build critest $@ "$$(go run ./test/images list -out $(IMAGES) | sed -n 's/.*test-image-digest@\(sha256:[0-9a-f]*\).*/\1/p')"

images: $(IMAGES)/critest/index.json
$(IMAGES)/critest/index.json: $(filter-out %_test.go,$(wildcard test/images/*.go test/images/*/*.go test/images/csrc/*.c))
	nice go run ./test/images build -out $(IMAGES) -cache $(CACHE)/images-src critest edge tool
$(IMAGES)/bench/index.json: test/images/bench.go
	nice go run ./test/images build -out $(IMAGES) -cache $(CACHE)/images-src bench

# ---- tests ----

TESTSUM = go run ./hack/testsum -cache $(CACHE) -run '$(RUN)' $(ARGS)

unit: deps-test $(C_PROGRAMS)
	$(TESTSUM) unit

blackbox: deps-test build $(CRICTL) images
	$(TESTSUM) blackbox

critest: deps-test build tools images
	$(TESTSUM) critest

# One after the other, so that the count stands in the last line.
test:
	@$(MAKE) --no-print-directory deps-test
	@$(MAKE) --no-print-directory build images tools
	@$(TESTSUM) unit blackbox critest

# ENDPOINT= measures a criserver that runs already; PEER_RESTART= is a command that starts the peer again.
bench: deps-test build $(CRICTL) images $(IMAGES)/bench/index.json
	go run ./test/bench -bin bin -cache $(CACHE) $(if $(ENDPOINT),-endpoint $(ENDPOINT)) $(if $(PEER),-peer $(PEER)) \
		$(if $(PEER_RESTART),-peer-restart '$(PEER_RESTART)') $(if $(REGISTRY),-registry $(REGISTRY)) $(if $(CASES),-cases $(CASES)) \
		$(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(SCALE),-scale $(SCALE)) $(if $(OUT),-out $(OUT)) $(if $(DOC),-doc $(DOC)) $(ARGS)

demo:
	@go run ./test/demo -bin bin -cache $(CACHE)

lint: $(C_PROGRAMS)
	@out=$$(gofmt -l cmd pkg hack test); [ -z "$$out" ] || { echo "gofmt -w $$out"; exit 1; }
	go vet ./...
	go vet -tags '$(SHIM_TAGS)' ./pkg/libct/... ./cmd/criserver-shim
	go test ./hack ./hack/conformance

# ---- install ----

install: build
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin bin/criserver bin/criserver-shim
	install -D -m 0644 -t $(DESTDIR)/lib/systemd/system deploy/criserver.service
	sed -i 's|/usr/local/bin/|$(PREFIX)/bin/|g' $(DESTDIR)/lib/systemd/system/criserver.service
	[ -e $(DESTDIR)/etc/criserver/config.toml ] || install -D -m 0644 deploy/config.toml $(DESTDIR)/etc/criserver/config.toml

clean:
	rm -rf bin $(C_PROGRAMS)

distclean: clean
	rm -rf $(CACHE)
