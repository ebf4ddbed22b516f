package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// reverseProxy is another HTTP proxy: no mesh, one worker, a log of guarded requests only. It
// runs beside the client outside of the mesh.
type reverseProxy struct {
	name, title string
	program     string // flag of its path
	// port is where it listens for requests of HTTP/1.1 with one route; others follow.
	port   int
	secure bool // mutual TLS on both sides
	// config is its configuration.
	config func(place) string
	args   []string // CONFIG is the file with the configuration, DIR its directory
}

// place is where a reverse proxy runs.
type place struct {
	server string // address of the server
	dir    string // for its files
	certs  string // directory of certificates
	port   int
	tables []int // of routes
	secure bool
	issuer issuer
}

var reverseProxies = []reverseProxy{
	{"envoy", "envoy, plain", "envoy", 7010, false, envoyConfig, []string{"-c", "CONFIG", "--concurrency", "1", "--disable-hot-restart", "-l", "off"}},
	{"envoy-mtls", "envoy, mutual TLS", "envoy", 7040, true, envoyConfig, []string{"-c", "CONFIG", "--concurrency", "1", "--disable-hot-restart", "-l", "off"}},
	{"nginx", "nginx, plain", "nginx", 7070, false, nginxConfig, []string{"-c", "CONFIG", "-p", "DIR"}},
	{"haproxy", "haproxy, plain", "haproxy", 7100, false, haproxyConfig, []string{"-f", "CONFIG"}},
}

// listener returns the port for requests of a protocol and a number of routes.
func listener(port int, proto string, routes int) int {
	return port + slices.Index(protocols, proto)*len(tables) + slices.Index(tables, routes)
}

// guardedListener returns the port for requests of a protocol that a proxy judges.
func guardedListener(port int, proto string) int {
	return port + len(protocols)*len(tables) + slices.Index(protocols, proto)
}

// each calls f for every listener of requests that are only sent on.
func (p *place) each(f func(proto string, routes, port int)) {
	for _, proto := range protocols {
		for _, n := range p.tables {
			f(proto, n, listener(p.port, proto, n))
		}
	}
}

// envoyConfig sends requests on in the version of HTTP in which they come.
func envoyConfig(p place) string {
	var b strings.Builder
	b.WriteString("static_resources:\n  listeners:\n")
	listen := func(proto string, routes, port int, accessLog, filters string) {
		cluster := "http1"
		if proto != "http" {
			cluster = "http2"
		}
		fmt.Fprintf(&b, `  - address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
%s          http_filters:
%s          - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
`, port, accessLog, filters)
		for i := range routes - 1 {
			fmt.Fprintf(&b, "              - {match: {path: %s}, route: {cluster: %s}}\n", otherPath(i), cluster)
		}
		fmt.Fprintf(&b, "              - {match: {prefix: /a}, route: {cluster: %s}}\n", cluster)
		if p.secure {
			fmt.Fprintf(&b, `      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: %s
`, envoyTLS(p.certs))
		}
	}
	p.each(func(proto string, routes, port int) { listen(proto, routes, port, "", "") })
	for _, proto := range protocols {
		listen(proto, 1, guardedListener(p.port, proto), envoyAccessLog(p.dir), envoyFilters(p.issuer))
	}
	b.WriteString("  clusters:\n")
	for _, v := range []string{"http1", "http2"} {
		to := serverPort
		if p.secure {
			to = secureServerPort
		}
		fmt.Fprintf(&b, "  - name: %s\n    type: STATIC\n    load_assignment: {cluster_name: %s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]}\n",
			v, v, p.server, to)
		if v == "http2" {
			b.WriteString(`    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
`)
		}
		if p.secure {
			fmt.Fprintf(&b, `    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: %s
        common_tls_context: %s
`, certName, envoyTLS(p.certs))
		}
	}
	return b.String()
}

// envoyTLS is TLS 1.3 with a certificate, and the same authority for the peer's.
func envoyTLS(certs string) string {
	file := func(name string) string { return "{filename: " + filepath.Join(certs, name) + "}" }
	return fmt.Sprintf("{tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}, tls_certificates: [{certificate_chain: %s, private_key: %s}], validation_context: {trusted_ca: %s}}",
		file(certFile), file(keyFile), file(caFile))
}

// nginxConfig keeps connections to the server, as the others do by default. This nginx
// sends requests of HTTP/2 on in HTTP/1.1, but for gRPC.
func nginxConfig(p place) string {
	var b strings.Builder
	b.WriteString(strings.NewReplacer("SERVER", p.server, "DIR", p.dir).Replace(`
daemon off;
master_process off;
pid DIR/nginx.pid;
error_log stderr crit;
events { worker_connections 8192; }
http {
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_body_temp_path DIR/body;
  proxy_temp_path DIR/proxy;
  fastcgi_temp_path DIR/fastcgi;
  uwsgi_temp_path DIR/uwsgi;
  scgi_temp_path DIR/scgi;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_buffers 32 4k;
  proxy_max_temp_file_size 0;
  upstream http1 { server SERVER:9000; keepalive 1024; keepalive_requests 1000000000; }
  upstream http2 { server SERVER:9000; keepalive 1024; keepalive_requests 1000000000; }
`))
	p.each(func(proto string, routes, port int) {
		pass, kind := "proxy_pass http://http1;", ""
		switch proto {
		case "h2":
			kind = " http2"
		case "grpc":
			kind, pass = " http2", "grpc_pass grpc://http2;"
		}
		fmt.Fprintf(&b, "  server {\n    listen 127.0.0.1:%d%s;\n", port, kind)
		for i := range routes - 1 {
			fmt.Fprintf(&b, "    location = %s { %s }\n", otherPath(i), pass)
		}
		fmt.Fprintf(&b, "    location /a { %s }\n  }\n", pass)
	})
	b.WriteString("}\n")
	return b.String()
}

func haproxyConfig(p place) string {
	var b strings.Builder
	b.WriteString(`
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
`)
	p.each(func(proto string, routes, port int) {
		kind, backend := "", "http1"
		if proto != "http" {
			kind, backend = " proto h2", "http2"
		}
		fmt.Fprintf(&b, "frontend %s-%d\n  bind 127.0.0.1:%d%s\n", proto, routes, port, kind)
		for i := range routes - 1 {
			if i == 0 {
				fmt.Fprintf(&b, "  use_backend %s if { path -f %s }\n", backend, routesFile(p.dir, routes))
			}
		}
		fmt.Fprintf(&b, "  use_backend %s if { path_beg /a }\n", backend)
	})
	for _, v := range []string{"http1", "http2"} {
		kind := ""
		if v == "http2" {
			kind = " proto h2"
		}
		fmt.Fprintf(&b, "backend %s\n  server one %s:%s%s\n", v, p.server, serverPort, kind)
	}
	return b.String()
}

func routesFile(dir string, routes int) string {
	return filepath.Join(dir, "routes-"+strconv.Itoa(routes))
}

// reverse starts a proxy, waits until it answers, and adds it.
func (w *world) reverse(ctx context.Context, o options, l *lab.Lab, p reverseProxy, server, dir string) error {
	at := place{server: server, dir: dir, certs: dir, port: p.port, tables: o.tables(), secure: p.secure, issuer: o.issuer}
	files := map[string]string{filepath.Join(dir, p.name+".yaml"): p.config(at)} // Envoy takes the format from the name
	for _, n := range at.tables {
		var b strings.Builder
		for i := range n - 1 {
			b.WriteString(otherPath(i) + "\n")
		}
		files[routesFile(dir, n)] = b.String()
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	command := []string{"/bin/sh", "-c", `echo $$; exec "$0" "$@" >/dev/null`, o.reverse[p.program]}
	for _, a := range p.args {
		command = append(command, strings.NewReplacer("CONFIG", filepath.Join(dir, p.name+".yaml"), "DIR", dir).Replace(a))
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
	c := &contender{name: p.name, title: p.title, lab: l, client: lab.InPod("plain", "client"), token: o.issuer.token, unguarded: p.program != "envoy"}
	c.site = func(r requests) string {
		if r.guarded {
			return "127.0.0.1:" + strconv.Itoa(guardedListener(p.port, r.proto))
		}
		return "127.0.0.1:" + strconv.Itoa(listener(p.port, r.proto, r.routes))
	}
	c.proxies = func(context.Context) ([]int, error) { return []int{pid}, nil }
	if p.secure {
		c.certs = at.certs
	}
	w.add(c, o)
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("waited 30 s"))
	defer cancel()
	for _, proto := range protocols {
		if err := c.until(ctx, requests{proto: proto, size: 1 << 10, conns: 1, routes: 1}, nil); err != nil {
			return fmt.Errorf("%s: %w", proto, err)
		}
		if c.unguarded {
			continue
		}
		if err := c.guarded(ctx, proto); err != nil {
			return fmt.Errorf("%s: %w", proto, err)
		}
	}
	return nil
}
