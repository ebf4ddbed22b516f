package main

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// reverseProxy is another HTTP proxy: no TLS, no mesh, one route, one worker, no log. It
// runs beside the client outside of the mesh.
type reverseProxy struct {
	name string
	addr string
	// config is its configuration. SERVER is the address of the server, DIR a directory
	// for its files.
	config string
	args   []string // CONFIG is the file with the configuration
}

var reverseProxies = []reverseProxy{
	{"envoy", "127.0.0.1:7003", envoyConfig, []string{"-c", "CONFIG", "--concurrency", "1", "--disable-hot-restart", "-l", "off"}},
	{"nginx", "127.0.0.1:7004", nginxConfig, []string{"-c", "CONFIG", "-p", "DIR"}},
	{"haproxy", "127.0.0.1:7005", haproxyConfig, []string{"-f", "CONFIG"}},
}

const envoyConfig = `
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 7003}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /a}, route: {cluster: server}}]}]}
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  clusters:
  - name: server
    type: STATIC
    load_assignment: {cluster_name: server, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: SERVER, port_value: 9000}}}}]}]}
`

// nginxConfig keeps connections to the server, as the others do by default.
const nginxConfig = `
daemon off;
master_process off;
pid DIR/nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path DIR/body;
  proxy_temp_path DIR/proxy;
  fastcgi_temp_path DIR/fastcgi;
  uwsgi_temp_path DIR/uwsgi;
  scgi_temp_path DIR/scgi;
  upstream server { server SERVER:9000; keepalive 1024; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:7004;
    location / { proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
}
`

const haproxyConfig = `
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 1m
  timeout server 1m
  http-reuse always
frontend bench
  bind 127.0.0.1:7005
  default_backend server
backend server
  server one SERVER:9000
`

// reverse starts a proxy, waits until it answers, and adds it.
func (w *world) reverse(ctx context.Context, o options, l *lab.Lab, p reverseProxy, server, dir string) error {
	fill := strings.NewReplacer("SERVER", server, "DIR", dir, "CONFIG", filepath.Join(dir, p.name+".conf"))
	config := fill.Replace("CONFIG")
	if p.name == "envoy" {
		config += ".yaml" // it takes the format from the name
	}
	if err := os.WriteFile(config, []byte(fill.Replace(p.config)), 0o600); err != nil {
		return err
	}
	command := []string{"/bin/sh", "-c", `echo $$; exec "$0" "$@" >/dev/null`, o.reverse[p.name]}
	for _, a := range p.args {
		if a == "CONFIG" {
			a = config
		}
		command = append(command, fill.Replace(a))
	}
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // one line is all that is read
	cmd, err := l.Exec(ctx, lab.InPod("plain", "client"), lab.ExecOptions{Stdout: out, Stderr: os.Stderr}, command...)
	_ = out.Close()
	if err != nil {
		return err
	}
	w.closers = append(w.closers, func() {
		_ = cmd.Signal(lab.SIGTERM)
		_, _ = cmd.Wait()
	})
	line, err := bufio.NewReader(r).ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(line))
	if err = errors.Join(err, perr); err != nil {
		return err
	}
	c := &contender{name: p.name, title: p.name + ", plain", lab: l, client: lab.InPod("plain", "client"), addr: p.addr}
	c.proxies = func(context.Context) ([]int, error) { return []int{pid}, nil }
	w.add(c, o)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err = c.load(ctx, "http", "-duration", "50ms"); err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}
