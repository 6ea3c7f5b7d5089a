// The tools that the tests drive the runtime with. Nothing imports this module: `build` reads the versions from it,
// and builds each tool inside its own module, with the dependencies that its authors chose.
module github.com/criserver/criserver/test/tools

go 1.26.0

require sigs.k8s.io/cri-tools v1.36.0
