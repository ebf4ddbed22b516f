package boards

// at selects the chosen instances of a program.
const at = `instance=~"$instance"`

// where names an instance: node and pod are there when the monitors of the chart scrape.
const where = "{{node}} {{pod}} {{instance}}"

// of restricts an expression to a program, whatever the labels of its target are.
func of(component, expr string) string {
	return expr + ` * on (job, instance) group_left (component) istio_build{component="` + component + `"}`
}

// instances is the choice between the instances of a program.
func instances(component string) []variable {
	return []variable{{"instance", "Instance", `istio_build{component="` + component + `"}`, "instance"}}
}

// descriptors returns the open descriptors of a program as a part of their limit.
func descriptors(component string) string {
	return of(component, "process_open_fds{"+at+"}") + " / on (job, instance) process_max_fds"
}

// process returns the rows that each program has: what it takes of its node.
func process(component string) []row {
	in := func(metric string) string { return of(component, metric+"{"+at+"}") }
	return []row{
		{"What it needs", []panel{
			chart("Resident memory", byteCount, "", in("process_resident_memory_bytes"), where),
			chart("Memory of the limit", share, "What Go's limit (GOMEMLIMIT) counts, as a part of it. Without a limit it is close to 0.",
				"("+in("go_memstats_sys_bytes")+" - on (job, instance) go_memstats_heap_released_bytes) / on (job, instance) go_gc_gomemlimit_bytes", "{{instance}}"),
			chart("Processor", plain, "Processors in use.", of(component, rate("process_cpu_seconds_total", at)), where),
			chart("Descriptors", share, "Open files and sockets, as a part of the limit.",
				descriptors(component), "{{instance}}"),
			chart("Goroutines", plain, "A number that only grows is a leak.", in("go_goroutines"), where),
			chart("Running since", seconds, "Age of the process. A fall is a restart.", "time() - "+in("process_start_time_seconds"), where),
		}},
	}
}

func ztunnel() Board {
	const xds = "istio_xds_connection_terminations_total"
	return Board{
		Name: "ztunnel", Title: "Node proxies (ztunnel)",
		About:     "Does each node proxy serve its pods, with the newest state, and within its bounds?",
		variables: instances("ztunnel"),
		rows: append([]row{
			{"Is it in order?", []panel{
				stat("Node proxies", plain, "", `count(istio_build{component="ztunnel",`+at+`})`, 0, 0),
				stat("Pods that are served", plain, "", "sum(workload_manager_active_proxy_count{"+at+"})", 0, 0),
				stat("Pods that wait", plain, "Their connections are refused until they are served.", "sum(workload_manager_pending_proxy_count{"+at+"})", 1, 5),
				stat("Bounds reached", plain, "Refusals of the last hour because a pod had used up its share.", "sum(increase(ztunnel_budget_refused_total{"+at+"}[1h]))", 1, 100),
				stat("Ports taken by others", plain, "Programs of pods that listened on a port of the proxy, in the last hour. A pod may be attacked.", "sum(increase(ambit_foreign_listeners_total{"+at+"}[1h]))", 1, 1),
				stat("Cut from the control plane", plain, "Connections to the control plane that ended or were not made, in the last hour.", orNone("sum(increase("+xds+"{"+at+"}[1h]))"), 10, 100),
			}},
			{"Connections", []panel{
				chart("Open sockets", plain, "", "sum by (instance) (istio_tcp_sockets_open{"+at+"})", "{{instance}}"),
				chart("New connections", perSecond, "", sumRate("instance, reporter", "istio_tcp_connections_opened_total", at), "{{instance}} {{reporter}}"),
				chart("Connections that fail", perSecond, "", sumRate("instance, reporter, response_flags", "istio_tcp_connections_failed_total", at), "{{instance}} {{reporter}} {{response_flags}}"),
				chart("Handshakes that fail", perSecond, "Mutual TLS of tunnels: certificates that are missing, of another identity or revoked, and peers that did not go on.",
					orNone(sumRate("", "istio_tcp_connections_failed_total", at+`,response_flags=~"TLS_FAILURE|IDENTITY_ERROR|CERT_REVOKED|H2_HANDSHAKE_FAILURE"`)), "handshakes"),
				chart("Bytes", bytesRate, "", sum("instance", rate("istio_tcp_sent_bytes_total", at)+" + "+rate("istio_tcp_received_bytes_total", at)), "{{instance}}"),
				chart("Certificates revoked", perSecond, "Peers that were refused or ended.", sumRate("instance, reporter", "istio_crl_policy_rejections_total", at), "{{instance}} {{reporter}}"),
				chart("From before enrolment", perSecond, "Connections that were ended because a policy denies them, and connections that lost the client's address.",
					sumRate("instance", "ambit_uncaptured_connections_closed_total", at), "ended {{instance}}", sumRate("instance", "ambit_inbound_without_client_address_total", at), "address lost {{instance}}"),
			}},
			{"Bounds", []panel{
				chart("Used", share, "What pods have taken of each resource that they share.", "ztunnel_budget_used{"+at+"} / ztunnel_budget_total", "{{resource}} {{instance}}"),
				chart("Refused", perSecond, "", sumRate("instance, resource", "ztunnel_budget_refused_total", at), "{{resource}} {{instance}}"),
				chart("Lines left out", perSecond, "Lines of the access log beyond the rate of a pod.", sumRate("instance, outcome", "ztunnel_access_log_suppressed_total", at), "{{outcome}} {{instance}}"),
			}},
			{"State of the control plane (xDS)", []panel{
				chart("Messages", perSecond, "No messages for long, while ambitd pushes, is a proxy that is not up to date.", sumRate("instance, url", "istio_xds_message_total", at), "{{url}} {{instance}}"),
				chart("Bytes", bytesRate, "", sumRate("instance, url", "istio_xds_message_bytes_total", at), "{{url}} {{instance}}"),
				chart("Connections that ended", perSecond, "ConnectionError: it could not be made. Error: the control plane refused or broke it.", sumRate("instance, reason", xds, at), "{{reason}} {{instance}}"),
			}},
			{"Look-ups (DNS)", []panel{
				chart("Look-ups", perSecond, "", sumRate("instance, request_query_type", "istio_dns_requests_total", at), "{{request_query_type}} {{instance}}"),
				chart("Not answered", perSecond, "Name servers that did not answer, look-ups beyond a pod's share, and answers to other questions.",
					sumRate("instance", "istio_dns_upstream_failures_total", at), "no answer {{instance}}", sumRate("instance", "ztunnel_dns_shed_total", at), "share used up {{instance}}", sumRate("instance", "ztunnel_dns_wrong_answers_total", at), "wrong {{instance}}"),
				chart("Time of name servers, p99", seconds, "", quantile("0.99", "instance", "istio_dns_upstream_request_duration_seconds", at), "{{instance}}"),
			}},
			{"Telemetry", []panel{
				chart("Spans", plain, "", sumRate("instance", "ztunnel_spans_sent_total", at), "sent {{instance}}", sumRate("instance, cause", "ztunnel_spans_dropped_total", at), "dropped: {{cause}} {{instance}}"),
				chart("Dry runs", perSecond, "What policies that decide nothing would have decided.", sumRate("policy, verdict", "ambit_policy_verdicts_total", at), "{{policy}}: {{verdict}}"),
			}},
		}, process("ztunnel")...),
	}
}

func cni() Board {
	return Board{
		Name: "cni", Title: "Node agents (ambit-cni)",
		About:     "Do pods join the mesh on every node?",
		variables: instances("ambit-cni"),
		rows: append([]row{
			{"Is it in order?", []panel{
				stat("Node agents", plain, "", `count(istio_build{component="ambit-cni",`+at+`})`, 0, 0),
				stat("Nodes that redirect", plain, "Nodes that have proven that they redirect. On others, no pod is enrolled.", "sum(ambit_cni_redirection_ready{"+at+"})", 0, 0),
				stat("Enrolled pods", plain, "", `sum(ambit_cni_pods{`+at+`,state="enrolled"})`, 0, 0),
				stat("Pods that wait", plain, "They should be in the mesh, and are not enrolled yet.", `sum(ambit_cni_pods{`+at+`,state="pending"})`, 1, 5),
				stat("Nodes without a proxy", plain, "No node proxy is connected to the agent.", "count(ztunnel_connected{"+at+"} == 0) or vector(0)", 1, 1),
				stat("Enrolment failures", plain, "Of the last hour.", orNone("sum(increase(ambit_cni_reconcile_failures_total{"+at+"}[1h]))"), 1, 10),
				stat("Pods kept from starting", plain, "Requests of the CNI plugin that failed, in the last hour.", orNone(`sum(increase(istio_cni_plugin_requests_total{`+at+`,response_code!~"2.."}[1h]))`), 1, 10),
				stat("Nodes with the plugin", plain, "", orNone("sum(istio_cni_install_ready{"+at+"})"), 0, 0),
			}},
			{"Enrolment", []panel{
				chart("Pods", plain, "", "sum by (instance, state) (ambit_cni_pods{"+at+"})", "{{state}} {{instance}}"),
				chart("Pods worked on", perSecond, "", sumRate("instance, type", "nodeagent_reconcile_events_total", at), "{{type}} {{instance}}"),
				chart("Failures", perSecond, "The log of the agent and the events of the pod have the cause.", sumRate("instance, type", "ambit_cni_reconcile_failures_total", at), "{{type}} {{instance}}"),
				chart("Requests of the CNI plugin", perSecond, "By status. Pods start when it is 2xx.", sumRate("instance, response_code", "istio_cni_plugin_requests_total", at), "{{response_code}} {{instance}}"),
				chart("Node proxies that are connected", plain, "Two while one replaces the other.", "ztunnel_connected{"+at+"}", where),
				chart("Redirection proven", plain, "", "ambit_cni_redirection_ready{"+at+"}", where),
				chart("Changes of the plugin's installation", perSecond, "", sumRate("instance, result", "istio_cni_installs_total", at), "{{result}} {{instance}}"),
			}},
			{"What the mesh does not carry", []panel{
				table("Pods by UDP", packets, "UDP datagrams of enrolled pods. The mesh does not encrypt them.", top(sumRate("namespace, pod, direction", "ambit_cni_pod_udp_datagrams_total", at))),
				chart("UDP", packets, "", sumRate("instance, direction", "ambit_cni_pod_udp_datagrams_total", at), "{{direction}} {{instance}}"),
			}},
			{"Large packets", []panel{chart("Interfaces", perSecond, "Interfaces of pods whose largest packet was to be changed, by result.", sumRate("instance, result", "ambit_cni_large_packets_total", at), "{{result}} {{instance}}")}},
		}, process("ambit-cni")...),
	}
}

func ambitd() Board {
	return Board{
		Name: "ambitd", Title: "Control plane (ambitd)",
		About:     "Does the control plane serve the newest configuration, and issue certificates?",
		variables: instances("ambitd"),
		rows: append([]row{
			{"Is it in order?", []panel{
				stat("Connected proxies", plain, "Clients of xDS: node proxies, waypoints, and others that may have the directory.", "sum(pilot_xds{"+at+"})", 0, 0),
				stat("Proxies that are not connected", plain, "Node proxies and waypoints that Prometheus scrapes, less the clients of xDS.", `clamp_min((count(istio_build{component=~"ztunnel|waypoint"}) or vector(0)) - sum(pilot_xds), 0)`, 1, 2),
				stat("Mistakes in the configuration", plain, "`ambit status` lists them.", "max(ambit_source_problems{"+at+"})", 1, 10),
				stat("Rejected by proxies", plain, "Resources of the last hour that a proxy did not accept.", orNone("sum(increase(pilot_total_xds_rejects{"+at+"}[1h]))"), 1, 1),
				stat("Root certificate", seconds, "Time until it ends.", "min(citadel_server_root_cert_expiry_seconds{"+at+"})", 30*day, 7*day),
				stat("Signing certificate", seconds, "Time until it ends.", "min(citadel_server_cert_chain_expiry_seconds{"+at+"})", 30*day, 7*day),
			}},
			{"Configuration to proxies (xDS)", []panel{
				chart("Clients", plain, "", "pilot_xds{"+at+"}", where),
				chart("Pushes", perSecond, "", sumRate("type", "pilot_xds_pushes", at), "{{type}}"),
				chart("Rejected", perSecond, "By type. The proxy keeps the last good state; its log has the cause.", sumRate("type", "pilot_total_xds_rejects", at), "{{type}}"),
				chart("Convergence", seconds, "From a change until a proxy has accepted it.",
					quantile("0.50", "", "pilot_proxy_convergence_time", at), "p50", quantile("0.99", "", "pilot_proxy_convergence_time", at), "p99", quantile("0.99", "type", "pilot_proxy_convergence_time", at), "p99 {{type}}"),
				chart("Resources sent", perSecond, "", sumRate("type", "ambit_xds_pushed_resources_total", at), "{{type}}"),
				chart("Bytes sent", bytesRate, "", sumRate("type", "ambit_xds_pushed_bytes_total", at), "{{type}}"),
				chart("Resources that change", perSecond, "", sumRate("type", "ambit_registry_changes_total", at), "{{type}}"),
				chart("Resources", plain, "", "max by (type) (ambit_registry_resources{"+at+"})", "{{type}}"),
			}},
			{"Certificates", []panel{
				chart("Requests for certificates", perSecond, "", sumRate("", "citadel_server_csr_count", at), "received", sumRate("", "citadel_server_success_cert_issuance_count", at), "issued"),
				chart("Not issued", perSecond, "",
					sumRate("", "citadel_server_csr_parsing_err_count", at), "malformed", sumRate("", "citadel_server_id_extraction_err_count", at), "identity not allowed",
					sumRate("error", "citadel_server_csr_sign_err_count", at), "not signed: {{error}}", sumRate("", "citadel_server_authentication_failure_count", at), "caller not authenticated"),
				chart("Change of the root: step overdue", seconds, "How long the present step has been due. It is 0 when no step waits.", "max(clamp_min(time() - (ambit_ca_rotation_due_timestamp{"+at+"} > 0), 0)) or vector(0)", "overdue"),
			}},
			{"Who calls (door)", []panel{
				chart("Refused", perSecond, "Connections and calls before they were served, by cause.", sumRate("cause", "ambit_control_refused_total", at), "{{cause}}"),
				chart("Connections without an authenticated call", plain, "At most 1,024.", "sum by (instance) (ambit_control_waiting_connections{"+at+"})", "{{instance}}"),
				chart("Keys of issuers of tokens", perSecond, "Attempts to fetch them.", sumRate("result", "ambit_jwks_fetches_total", at), "{{result}}"),
			}},
			{"Kubernetes", []panel{
				chart("API server reachable", plain, "", "min by (cluster) (ambit_kube_reachable{"+at+"})", "{{cluster}}"),
				chart("Watches that failed", perSecond, "", sumRate("cluster, kind", "ambit_kube_watch_failures_total", at), "{{kind}} {{cluster}}"),
				chart("Objects that change", perSecond, "", sumRate("kind", "ambit_kube_events_total", at), "{{kind}}"),
				chart("Objects", plain, "", "max by (kind) (ambit_kube_objects{"+at+"})", "{{kind}}"),
				chart("Objects judged by the webhook", perSecond, "", sumRate("", "galley_validation_passed", at), "allowed", sumRate("resource", "galley_validation_failed", at), "refused: {{resource}}", sumRate("status", "galley_validation_http_error", at), "no review: {{status}}"),
				chart("Time to judge an object, p99", seconds, "", quantile("0.99", "", "ambit_validation_duration_seconds", at), "p99"),
				chart("Webhook's configuration", perSecond, "", sumRate("", "galley_validation_config_updates", at), "changes", sumRate("reason", "galley_validation_config_update_error", at), "failures: {{reason}}"),
			}},
		}, process("ambitd")...),
	}
}

// day is in seconds.
const day = 24 * 60 * 60
