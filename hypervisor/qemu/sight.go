package qemu

import (
	"sync"
	"time"
)

// sightAge is how long a look at all processes may serve: a node that runs none of
// its 200 VMs would look at every process of the machine for each of them. Our own.
const sightAge = time.Second

// A sight is a look at all processes that questions about many VMs share. Only what
// asks may use it: who starts or kills looks for itself.
type sight struct {
	each func(f func(pid int, pidFile string)) error

	mu     sync.Mutex
	taken  time.Time        // zero: not, or before a start
	pids   map[string][]int // by pid file
	starts int              // that are under way: a process may appear at any moment
}

// processes is like the function of that name.
func (s *sight) processes(pidFile string) ([]process, error) {
	if p, ok := processOfPIDFile(pidFile); ok {
		return []process{p}, nil
	}
	pids, err := s.pidsOf(pidFile)
	if err != nil {
		return nil, err
	}
	var found []process
	for _, pid := range pids {
		if pidFileOf(pid) != pidFile {
			continue // it has ended since
		}
		if p, ok := lookAt(pid); ok {
			found = append(found, p)
		}
	}
	return found, nil
}

func (s *sight) pidsOf(pidFile string) ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.starts > 0 || now.Sub(s.taken) >= sightAge {
		pids := map[string][]int{}
		if err := s.each(func(pid int, file string) { pids[file] = append(pids[file], pid) }); err != nil {
			return nil, err
		}
		s.taken, s.pids = now, pids
	}
	return s.pids[pidFile], nil
}

// starting says that a QEMU is being started, until ended is called.
func (s *sight) starting() (ended func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starts++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.starts--
		s.taken = time.Time{}
	}
}
