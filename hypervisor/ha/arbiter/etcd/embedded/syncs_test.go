package embedded

import "testing"

func TestComplain(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to buckets
		ill      bool
	}{
		{"no look yet", buckets{}, buckets{}, false},
		{"too few", buckets{}, buckets{0.004: 0, 0.008: 0, 0.016: 5, inf: 5}, false},
		{"quick", buckets{}, buckets{0.004: 90, 0.008: 100, 0.016: 100, inf: 100}, false},
		{"one in a hundred", buckets{}, buckets{0.004: 90, 0.008: 99, 0.016: 100, inf: 100}, false},
		{"two in a hundred", buckets{}, buckets{0.004: 90, 0.008: 98, 0.016: 100, inf: 100}, true},
		{"slow before, quick now", buckets{0.008: 0, inf: 100}, buckets{0.008: 100, inf: 200}, false},
		{"quick before, slow now", buckets{0.008: 100, inf: 100}, buckets{0.008: 100, inf: 200}, true},
	} {
		if got := complain(c.from, c.to); (got != "") != c.ill {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
