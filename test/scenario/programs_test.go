//go:build programs

package scenario

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// packages are the Debian packages of the programs that this file drives.
const packages = "curl dnsutils lftp musl-tools netcat-openbsd openssh-client openssh-server postgresql vsftpd"

// TestPrograms: programs of every day get through the mesh what they get without it,
// whichever of client and server is in the mesh: requests and uploads, sessions and copies
// by SSH, files by FTP in passive and active mode, queries, datagrams, greetings of a
// server that speaks first, and half-closed connections.
func TestPrograms(t *testing.T) {
	for _, p := range []string{"curl", "dig", "lftp", "musl-gcc", "nc", "ssh", "ssh-keygen", "sshd", "initdb", "postgres", "psql", "vsftpd", "python3", "runuser"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%v (apt-get install %s)", err, packages)
		}
	}
	dir := serverFiles(t)
	yaml := rig.NamespaceObject("shop", true) + rig.NamespaceObject("street", false)
	for _, ns := range []string{"shop", "street"} {
		yaml += rig.PodObject(ns, "server", "node1", "app: server", "/bin/sh", filepath.Join(dir, "serve.sh"), dir, ns, rig.Bin("echo")) +
			"    readinessProbe: {tcpSocket: {port: 5432}}\n" +
			rig.PodObject(ns, "near", "node1", "") + rig.PodObject(ns, "far", "node2", "")
	}
	world := rig.Start(t, lab.Config{Nodes: 2, Mesh: true, YAML: yaml})
	for _, c := range []struct{ name, command, want string }{
		{"curl", `curl -sS http://URLHOST:8080/`, "server "},
		{"nc, echo and half-close", `printf ping | nc -N -w 10 HOST 9000`, "ping"},
		{"nc, greeting", `nc -w 10 -N HOST 9100 < /dev/null`, "220 welcome"},
		{"nc, datagrams", `printf datagram | nc -u -w 1 HOST 5300`, "DATAGRAM"},
		{"ssh", `SSH root@HOST echo over ssh`, "over ssh"},
		{"ssh, upload", `head -c 20000000 /dev/zero | SSH root@HOST wc -c`, "20000000"},
		{"ssh, download", `SSH root@HOST head -c 20000000 /dev/zero | wc -c`, "20000000"},
		{"sftp", `F=$(mktemp); sftp -q -i DIR/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@URLHOST:DIR/ftp/file $F; cat $F; rm $F`, "by ftp"},
		{"psql", `psql -h HOST -U nobody -d postgres -Atc "select 40 + 2"`, "42"},
		{"psql, many rows", `psql -h HOST -U nobody -d postgres -Atc "select repeat('x', 1000) from generate_series(1, 20000)" | wc -c`, "20020000"},
		{"ftp, passive", `curl -sS ftp://URLHOST/file`, "by ftp"},
		{"lftp, passive", `lftp -e "set ftp:ssl-allow no; cat file; bye" ftp://URLHOST`, "by ftp"},
		// Not by curl: it fails when the server reports the end of a transfer before curl has
		// accepted its connection, which a proxy between them can cause.
		{"lftp, active", `lftp -e "set ftp:ssl-allow no; set ftp:passive-mode off; cat file; bye" ftp://URLHOST`, "by ftp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig.Families(t, func(t *testing.T, v6 bool) {
				w := world.For(t)
				for _, client := range []string{"street", "shop"} {
					for _, server := range []string{"street", "shop"} {
						for _, pod := range []string{"near", "far"} {
							host := w.Pod(server, "server", v6).String()
							urlHost := host
							if v6 {
								urlHost = "[" + host + "]"
							}
							command := strings.NewReplacer("URLHOST", urlHost, "HOST", host, "DIR", dir,
								"SSH", "ssh -q -i "+dir+"/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null").Replace(c.command)
							out, err := w.Run(t.Context(), lab.InPod(client, pod), "/bin/bash", "-o", "pipefail", "-c", "{ timeout 60 bash -c '"+strings.ReplaceAll(command, "'", `'\''`)+"'; } 2>&1")
							if err != nil || !strings.HasPrefix(strings.TrimSpace(out), c.want) {
								t.Errorf("from %s/%s to %s: %.300q, %v", client, pod, server, out, err)
							}
						}
					}
				}
			})
		})
	}
}

// serverFiles returns a directory with what the servers of TestPrograms serve, and
// serve.sh, which starts them: its arguments are the directory, a name and test/echo.
func serverFiles(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "programs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, text := range map[string]string{
		"ftp/file": "by ftp\n",
		"sshd.conf": fmt.Sprintf("HostKey %[1]s/host\nAuthorizedKeysFile %[1]s/key.pub\nStrictModes no\nPermitRootLogin yes\nPidFile none\n"+
			"Subsystem sftp internal-sftp\n", dir),
		"vsftpd.conf": fmt.Sprintf("listen=NO\nlisten_ipv6=YES\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\nport_enable=YES\nanon_root=%s/ftp\n"+
			"secure_chroot_dir=%[1]s/empty\n", dir),
		"datagrams.py": `import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 5300))
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(data.upper(), peer)
`,
		"serve.sh": `set -e
dir=$1 name=$2 echo=$3
mkdir -p /run/sshd
chown nobody "$dir/$name"
runuser -u nobody -- initdb -A trust -N -D "$dir/$name/db" > /dev/null
for all in 0.0.0.0/0 ::/0; do echo "host all all $all trust" >> "$dir/$name/db/pg_hba.conf"; done
"$(command -v sshd)" -D -e -f "$dir/sshd.conf" &
"$(command -v vsftpd)" "$dir/vsftpd.conf" &
python3 "$dir/datagrams.py" &
"$echo" server -name server -first :9100 &
exec runuser -u nobody -- postgres -D "$dir/$name/db" -F -k "$dir/$name" -c "listen_addresses=*"
`,
		"empty/.keep": "", "shop/.keep": "", "street/.keep": "",
	} {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the servers' own users read it
		t.Fatal(err)
	}
	for _, key := range []string{"host", "key"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	return dir
}

// TestResolvers: dig and musl's resolver get names of the mesh and of outside; see
// TestDNSPrograms for others.
func TestResolvers(t *testing.T) {
	dir := t.TempDir()
	source, program := filepath.Join(dir, "look.c"), filepath.Join(dir, "look")
	if err := os.WriteFile(source, []byte(`#include <netdb.h>
#include <stdio.h>
int main(int n, char **args) {
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all;
	int err = getaddrinfo(args[1], "80", &hints, &all);
	if (err) return puts(gai_strerror(err)), 1;
	for (; all; all = all->ai_next) {
		char host[100];
		getnameinfo(all->ai_addr, all->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST);
		puts(host);
	}
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("musl-gcc", "-static", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v: %s (apt-get install %s)", err, out, packages)
	}
	world := rig.Start(t, lab.Config{YAML: named})
	nameServerIn(world, "street", "tower")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		w.MustRun(looker, "/bin/sh", "-c", fmt.Sprintf("printf 'nameserver %s\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n' > /etc/resolv.conf", w.Pod("street", "tower", v6)))
		for name, want := range map[string][]string{
			"ledger.example":   {"240.240.7.1", "2001:2::701"},
			"www.outside.test": {"192.0.2.9", "2001:db8::9"},
		} {
			for _, command := range [][]string{
				{program, name}, {"dig", "+short", name, "A", name, "AAAA"}, {"dig", "+tcp", "+short", name, "A", name, "AAAA"}, {"dig", "+search", "+noedns", "+short", name, "A", name, "AAAA"},
			} {
				out := w.MustRun(looker, command...)
				for _, a := range want {
					if !bytes.Contains([]byte(out), []byte(a)) {
						t.Errorf("%q: %q has no %s", command, out, a)
					}
				}
			}
		}
	})
}
