// Package hack holds the rules of this source tree as tests, and the programs that developers run.
//
// The rules: who may import whom (layers.txt), every package says what it is for, functions fit a screen, and
// nothing in the tree knows of the machine it was written on. `make lint` checks them alone.
package hack
