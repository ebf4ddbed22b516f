// Command echo is the ordinary program that pods of the lab run: servers that
// tell who called, and clients that call at a constant rate and count what
// fails. It knows nothing of meshes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage:
  echo server [-deaf :8080] [-http :8080] [-tcp :9000] [-first :9100] [-tls :8443] [-grpc :9200] [-authorizer-http :8000] [-authorizer-grpc :8001] [-limiter :8002] [-keys JSON] [-name NAME]
      HTTP that answers with name and caller, and to paths that end with /headers with these, to /keys with the keys of an issuer, to /connections with how many connections there were; TCP echo; TCP whose server speaks first; HTTP in TLS; gRPC health; external authorizers; a rate limit service
  echo load -url http://HOST:PORT/ [-rate 100] [-duration 10s] [-workers 16] [-per-conn 20] [-protocol http1|h2|grpc]
      requests at a constant rate; a line of JSON every second, and one at the end
  echo hold -addr HOST:PORT [-every 100ms] [-text TEXT] [-each]
      one TCP connection to an echo server, used until it ends; a line of JSON for what happens
  echo get -url URL [-n 1] [-insecure] [-sni NAME] [-hello SHAPE] [-ip 4|6] [-proxy URL] [-json] [-H NAME:VALUE]...
      requests, each on a connection of its own; prints the answers
  echo lookup -name NAME [-type ip4|ip6]
      asks the name server; prints a line for each answer
  echo greet -addr HOST:PORT
      one TCP connection, on which nothing is sent; prints the first line of the server
  echo raw -addr HOST:PORT [-keep] HEAD...
      heads of requests as they are, each on a connection of its own unless they keep one, with \r\n for \n; a line of JSON for each
  echo slow -addr HOST:PORT [-n 300] [-duration 10s] [-send HEX]
      TCP connections that send some bytes, by default the first one of TLS, and no more; prints how many stay open
  echo bytes -addr HOST:PORT [-n N] HEX...
      bytes, each on a connection of its own; a line of JSON with what comes back, at most N bytes, and why it ended
  echo sysctl NAME=VALUE...
      sets parameters of the kernel in the network of the pod
  echo collector [-http :4318] [-grpc :4317]
      prints the spans and log records that it gets by OTLP
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	commands := map[string]func(context.Context, []string) error{
		"server": server, "load": load, "hold": hold, "get": get, "lookup": lookup, "greet": greet, "collector": collector, "raw": raw, "slow": slow, "bytes": sendBytes, "sysctl": sysctl,
	}
	run, ok := commands[os.Args[1]]
	if !ok {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[2:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ExitOnError)
	f.Usage = func() { fmt.Fprint(os.Stderr, usage); f.PrintDefaults() }
	return f
}
