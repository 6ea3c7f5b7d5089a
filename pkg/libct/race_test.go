//go:build race

package libct

func init() { raceFlags = []string{"-race"} } // the shim is tested for races too
