//! What a change costs in user space: from a file to this node's table, among many services.
//!
//! `cargo bench -p heddle-control [--bench change -- SERVICES]` (default 10,000, each with 10 endpoints on 10 nodes, a
//! fifth with a node port): times of the first reading and the first table, medians of a changed endpoint.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use heddle_control::Spec;
use heddle_model::resolve::{Resolver, Rules};
use heddle_model::{NodeName, Store, diff};

const ENDPOINTS: usize = 10;

fn service(n: usize, port: u16) -> String {
    let [high, low] = [n / 250, n % 250 + 1];
    let kind = if n.is_multiple_of(5) { "NodePort" } else { "ClusterIP" };
    let node_port =
        if n.is_multiple_of(5) { format!(", nodePort: {}", 30_000 + n / 5) } else { String::new() };
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: bench}}\nspec:\n  type: {kind}\n  clusterIPs: \
         [10.96.{high}.{low}]\n  ports: [{{name: web, port: 80{node_port}}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: \
         EndpointSlice\naddressType: IPv4\nmetadata: {{name: s{n}-a, namespace: bench, labels: \
         {{kubernetes.io/service-name: s{n}}}}}\nports: [{{name: web, port: {port}, protocol: TCP}}]\nendpoints:\n"
    );
    for e in 0..ENDPOINTS {
        let host = (n * ENDPOINTS / 10 + e) % 60_000;
        let _ = writeln!(
            text,
            "- {{addresses: [10.{}.{}.{}], nodeName: n{e}, conditions: {{ready: true}}}}",
            100 + e,
            host / 250,
            host % 250 + 1
        );
    }
    text
}

fn nodes() -> String {
    (0..10)
        .map(|n| {
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{n}}}\nspec: {{podCIDR: 10.{}.0.0/16}}\nstatus: \
                 {{addresses: [{{type: InternalIP, address: 192.168.7.{}}}]}}\n",
                100 + n,
                n + 1
            )
        })
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let services: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10_000);
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("nodes.yaml"), nodes())?;
    for n in 0..services {
        fs::write(dir.path().join(format!("s{n}.yaml")), service(n, 8080))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (store, mut resolver, local) = (Store::new(), Resolver::default(), NodeName("n1".into()));
        let rules = Rules::default();
        let mut watch = store.watch();
        println!("{services} services with {ENDPOINTS} endpoints each; resident: {} MiB", resident());
        let began = Instant::now();
        Spec::Manifests(dir.path().into()).start(&store, &heddle_control::source::Settings::default());
        let mut snapshot = watch.changed().await;
        while !snapshot.synced {
            snapshot = watch.changed().await;
        }
        println!("read {:?}, resident: {} MiB", began.elapsed(), resident());
        let began = Instant::now();
        let (mut table, problems) = resolver.services(&snapshot, &local, &rules);
        println!("first table {:?}, resident: {} MiB", began.elapsed(), resident());
        println!("frontends {}, problems {}", table.frontends.len(), problems.len());
        let (mut told, mut resolved, mut compared) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..31u16 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let new = dir.path().join(".new");
            fs::write(&new, service(usize::from(round) * services / 40, 9000 + round))?;
            let began = Instant::now();
            fs::rename(&new, dir.path().join(format!("s{}.yaml", usize::from(round) * services / 40)))?;
            let snapshot = watch.changed().await;
            told.push(began.elapsed());
            let began = Instant::now();
            let (next, _) = resolver.services(&snapshot, &local, &rules);
            resolved.push(began.elapsed());
            let began = Instant::now();
            let plan = diff(&table, &next);
            compared.push(began.elapsed());
            assert!((1..=2).contains(&plan.len()), "{} steps", plan.len());
            table = next;
        }
        println!("a changed file is told after {:?}", median(told));
        println!("its table is there after {:?}, compared in {:?}", median(resolved), median(compared));
        Ok(())
    })
}
