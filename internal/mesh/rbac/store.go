package rbac

// Store is the writer's side: it applies deltas and publishes Sets. All
// methods may be called from any goroutine.
type Store struct{}

// NewStore returns an empty Store.
func NewStore() *Store { return &Store{} }

// Set returns the present policies.
func (s *Store) Set() *Set { return nil }

// Apply sets and removes policies (by resource name). Policies that cannot be
// compiled are in force, closed, and returned.
func (s *Store) Apply(set []Update, removed []string) []Rejection { return nil }

// Subscribe calls fn after every Apply that changed something, on the
// goroutine of Apply, after the new Set is visible. fn must be quick and must
// not call the Store's writing methods. The result ends the subscription.
func (s *Store) Subscribe(fn func(*Set)) (cancel func()) { return func() {} }
