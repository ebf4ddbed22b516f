// Package lab is a whole mesh on one Linux machine: nodes and pods made of
// network namespaces, fed with ordinary Kubernetes YAML, running the real
// binaries. It is the playground behind `ambit lab`, and the rig of the
// integration tests, the demo and the benchmarks.
//
// A lab is one supervisor process that is PID 1 of its own PID, mount and
// network namespaces (and user namespace, when its owner is not root). All
// that a lab consists of hangs on that one process: kill it, in any way, and
// the kernel ends every process and takes down every namespace in it. Only
// files in the state directory stay; the next Start or Down removes them.
//
// This package is the client. A program that uses it calls Main of package supervisor
// before anything else, because the supervisor and the first process of each pod are
// this same program, started again.
package lab

import (
	"context"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab/network"
)

// Config describes a lab. The zero value is a plaintext network of one node.
type Config struct {
	// Name tells labs of one user apart; default "demo".
	Name string
	// StateDir holds everything the lab writes; default DefaultStateDir(Name).
	StateDir string
	// Nodes is how many nodes there are, named node1, node2, …; default 1.
	Nodes int
	// IPFamily is dual, ipv4 or ipv6; without it the lab has what the kernel does.
	IPFamily string
	// PodAddresses is how many addresses a node has for pods; default 245. With
	// few of them the address of a deleted pod is given away again at once.
	PodAddresses int
	// Manifests are files and directories of Kubernetes YAML to begin with.
	Manifests []string
	// YAML is more of the same, as text.
	YAML string
	// Mesh runs ambitd, and a ztunnel and an ambit-cni on every node. Without
	// it the lab is a plain network with pods and services.
	Mesh bool
	// BinDir is where ambitd, ztunnel, ambit-cni and waypoint are; default the
	// directory of the running program.
	BinDir string
	// PeerZtunnel gives nodes, by name, another ztunnel binary, such as
	// upstream's. It gets the same environment.
	PeerZtunnel map[string]string
	// Env has more environment for components: "ambitd", "ztunnel", "ambit-cni" and
	// "waypoint" for all of them, or by full name ("ztunnel/node1").
	Env map[string][]string
	// Args has more command line arguments, by the same keys.
	Args map[string][]string
	// LargePackets lets packets between nodes be large, and has the node agents let
	// those of enrolled pods (ambit-cni --large-packets=pod).
	LargePackets bool
	// ClusterDNS has the programs of the mesh ask the name server that pods ask, and not those
	// of this machine. The lab has none: a Service at the address has to be applied.
	ClusterDNS bool
	// UserNamespace makes an unprivileged lab even for root. Without root there
	// is no other.
	UserNamespace bool
	// Detach lets the lab outlive the calling process. Otherwise it ends with it.
	Detach bool
	// ReadyTimeout bounds the wait for components and pods; default 60 s.
	ReadyTimeout time.Duration
	// Logger gets what the lab itself has to say; default slog.Default.
	Logger *slog.Logger `json:"-"`
}

// Ambitd is the component that every mesh has one of. The others are one a
// node: "ztunnel/NODE" and "ambit-cni/NODE".
const Ambitd = network.Ambitd

// Where names a network namespace of the lab.
type Where string

// LAN is the network between the nodes; ambitd runs there.
const LAN Where = "lan"

// InNode is the namespace of a node, where ambit-cni runs.
func InNode(name string) Where { return Where("node/" + name) }

// InPod is the namespace of a pod.
func InPod(namespace, name string) Where { return Where("pod/" + namespace + "/" + name) }

// InZtunnel is the namespace of the newest ztunnel of a node: like on
// Kubernetes, the node proxy is a pod of its own.
func InZtunnel(node string) Where { return Where("ztunnel/" + node) }

// Status is what a lab consists of.
type Status struct {
	Name         string            `json:"name"`
	StateDir     string            `json:"stateDir"`
	PID          int               `json:"pid"` // of the supervisor, as its owner sees it
	RSS          int64             `json:"rss"` // of the supervisor: bytes of resident memory
	Mesh         bool              `json:"mesh"`
	Unprivileged bool              `json:"unprivileged"`
	Nodes        []NodeStatus      `json:"nodes"`
	Pods         []PodStatus       `json:"pods"`
	Services     []ServiceStatus   `json:"services"`
	Components   []ComponentStatus `json:"components"`
	Events       []Event           `json:"events"` // the newest, oldest first
}

// NodeStatus is one node.
type NodeStatus struct {
	Name   string            `json:"name"`
	IPs    []string          `json:"ips"`
	Labels map[string]string `json:"labels,omitempty"`
}

// PodStatus is one pod.
type PodStatus struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	UID       string   `json:"uid"`
	Node      string   `json:"node"`
	IPs       []string `json:"ips"` // IPv4, IPv6
	Phase     string   `json:"phase"`
	Ready     bool     `json:"ready"`
	Restarts  int      `json:"restarts"`
	PIDs      []int    `json:"pids"`     // of the containers, as the lab counts them
	RSS       int64    `json:"rss"`      // bytes of resident memory of these processes
	Captured  bool     `json:"captured"` // labels ask for the mesh
	Message   string   `json:"message,omitempty"`
}

// ServiceStatus is one service.
type ServiceStatus struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	IPs       []string `json:"ips"`
	Endpoints int      `json:"endpoints"` // ready pods behind it
}

// ComponentStatus is one supervised program of the mesh.
type ComponentStatus struct {
	Name     string    `json:"name"` // ambitd, ztunnel/node1, ambit-cni/node1
	PID      int       `json:"pid"`  // as the lab counts them; 0 while it is down
	Path     string    `json:"path"`
	State    string    `json:"state"` // running, waiting, stopped
	Ready    bool      `json:"ready"`
	Restarts int       `json:"restarts"` // after ends that nobody asked the lab for
	Since    time.Time `json:"since"`
	RSS      int64     `json:"rss"` // bytes of resident memory
	Message  string    `json:"message,omitempty"`
}

// Event is something worth telling the user.
type Event struct {
	Time    time.Time `json:"time"`
	Object  string    `json:"object"`
	Message string    `json:"message"`
}

// ExecOptions are the streams and surroundings of a command.
type ExecOptions struct {
	// Stdin, Stdout and Stderr become the command's own descriptors; nil is
	// /dev/null.
	Stdin, Stdout, Stderr *os.File
	// TTY gives the command a new session with Stdin, a terminal, in control.
	TTY bool
	// Env is added to the environment.
	Env []string
	// Dir is the working directory; default that of the pod, or /.
	Dir string
}

// RestartMode is how a component is replaced.
type RestartMode string

// The ways to replace a component.
const (
	// RestartGraceful ends it with SIGTERM and starts it again. For a ztunnel
	// the next generation is started first and has to be ready.
	RestartGraceful RestartMode = "graceful"
	// RestartKill ends it with SIGKILL and starts it again at once.
	RestartKill RestartMode = "kill"
)

// Lab is a handle on a running lab. Safe for use by several goroutines.
type Lab struct {
	Dirs     Dirs
	Lifeline *os.File // held open: the lab ends when it closes
	process  *os.Process
	Exited   chan struct{}
}

// Kill signals, for those who do not otherwise need the unix package.
const (
	SIGKILL = unix.SIGKILL
	SIGTERM = unix.SIGTERM
)

// Start builds a lab and waits until its components and pods are ready.
// A lab of the same state directory that was killed is cleaned up first; one
// that is alive is an error. The caller owns the lab and ends it with Close.
func Start(ctx context.Context, cfg Config) (*Lab, error) { return start(ctx, cfg) }

// Attach finds a running lab by its state directory.
func Attach(stateDir string) (*Lab, error) { return attach(stateDir) }

// Down ends the lab of a state directory, alive or not, and removes its files.
// It is not an error when there is none.
func Down(stateDir string) error { return down(stateDir) }
