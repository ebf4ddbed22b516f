package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/sys/links"
)

// cmdAdd asks the agent of the pod's node to enrol it, as the CNI plugin does.
func (s *supervisor) cmdAdd(ctx context.Context, p *pod) error {
	type ip struct {
		Interface int
		Address   net.IPNet
		Gateway   net.IP
	}
	body := struct {
		Netns, PodName, PodNamespace string
		IPs                          []ip
	}{Netns: filepath.Join(s.d.PodNetns(p.node.name), p.uid), PodName: p.key.Name, PodNamespace: p.key.Namespace}
	for _, a := range p.ips().Addrs(s.families) {
		body.IPs = append(body.IPs, ip{Address: *links.IPNet(network.Single(a))})
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/cmdadd", bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.agent(p.node.name).Do(req)
	if err != nil {
		return fmt.Errorf("ambit-cni on %s: %w", p.node.name, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ambit-cni on %s: %s: %s", p.node.name, resp.Status, bytes.TrimSpace(said))
	}
	return nil
}

func (s *supervisor) agent(node string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			path, release, err := lab.ShortPath(s.d.Plugin(node))
			if err != nil {
				return nil, err
			}
			defer release()
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}
