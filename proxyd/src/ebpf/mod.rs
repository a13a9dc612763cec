//! The dataplane of eBPF programs: its maps say what the programs do.
//!
//! What the maps hold outlives the daemon, and so do the programs and their links: a daemon that is killed
//! leaves a datapath that forwards, and one that starts [reads](read) what is there, and writes only what
//! differs. [`compile`] and [`apply`] hold the order of the writes.

mod apply;
mod collect;
mod compile;
pub(crate) mod encode;
mod extents;
mod grow;
pub(crate) mod heap;
mod kernel;
mod ledger;
#[cfg(test)]
pub(crate) mod live;
mod maglev;
mod nodes;
pub(crate) mod place;
mod project;
mod read;
mod routes;
#[cfg(test)]
mod scale;
mod settings;
#[cfg(test)]
mod sim;
mod slots;
mod state;
#[cfg(test)]
mod tearing;
mod view;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use collect::Collector;
pub use collect::Sizes as FlowCounts;
use grow::Succession;
use heddle_bpf::{Datapath, Pins, TcHook, XdpMode};
use heddle_daemon::exit::Failure;
use heddle_ebpf_common::{CONFIG_OTHER_PROXY, Config, Counter};
use heddle_model::{Effect, Plan, ServiceTable};
use heddle_netlink::{Socket, link, sysctl};
use kernel::Kernel;
use nix::libc;
use project::Projector;
use routes::RouteCounter;
pub use settings::{Remote, Xdp};
use state::State;
pub use view::{Load, View};

use crate::dataplane::{Counters, Dataplane, Devices, Error, Outcome, Unsupported};
use crate::leftovers::OtherProxy;
use crate::sockets::{Helper, Sweeper};

/// Names of the host sides of pods' veths begin so; `heddle` gives them.
pub const POD_PREFIX: &str = "hdl";

/// What the dataplane is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// A mounted BPF file system; `/sys/fs/bpf` unless configured otherwise.
    pub bpf_root: PathBuf,
    /// The cgroup2 directory whose processes are served; `None`: the whole hierarchy.
    pub cgroup_root: Option<PathBuf>,
    pub remote: Remote,
    pub xdp: Xdp,
    pub vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The most that maps may hold.
    pub sizes: MapSizes,
    /// What they begin with.
    pub first: MapSizes,
    /// Is there another proxy beside this one?
    pub other: OtherProxy,
    /// Ends sockets of removed backends; `None`: nobody looks for them.
    pub helper: Option<Helper>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bpf_root: "/sys/fs/bpf".into(),
            cgroup_root: None,
            remote: Remote::Tunnel,
            xdp: Xdp::Off,
            vni: 1,
            vxlan_port: 8472,
            sizes: MapSizes::by_memory(),
            first: grow::FIRST,
            other: OtherProxy::default(),
            helper: None,
        }
    }
}

/// How much the maps may hold. They begin smaller and grow when they must, without losing a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct MapSizes {
    /// Most addresses of services (ClusterIPs and node ports, a port and protocol each; those that are reached
    /// from outside also need a table: one in 21 may be of that kind) [by default as many as a 128th of the memory holds]
    #[arg(long, value_name = "COUNT", default_value_t = Self::by_memory().max_frontends, hide_default_value = true, value_parser = clap::value_parser!(u32).range(64..=1 << 22))]
    pub max_frontends: u32,
    /// Most backends, counted once for each address of a service [by default as many as a 128th of the memory holds]
    #[arg(long, value_name = "COUNT", default_value_t = Self::by_memory().max_backends, hide_default_value = true, value_parser = clap::value_parser!(u32).range(64..=1 << 22))]
    pub max_backends: u32,
    /// Most connections and conversations that are translated packet by packet at one time [by default as many as a
    /// 64th of the memory holds]
    #[arg(long, value_name = "COUNT", default_value_t = Self::by_memory().max_flows, hide_default_value = true, value_parser = clap::value_parser!(u32).range(64..=1 << 24))]
    pub max_flows: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self::by_memory()
    }
}

impl MapSizes {
    fn sizes(self) -> heddle_bpf::Sizes {
        heddle_bpf::Sizes {
            frontends: self.max_frontends,
            // In blocks: most frontends take one for their dense list; a Maglev table of few backends takes 64.
            ring: self.max_frontends * 4,
            backends: self.max_backends,
            // Every backend of a service is a choice, wherever it runs: so the table can be read back.
            choices: self.max_backends,
            // One for each address at the most, and those of the nodes.
            addrs: self.max_frontends + (1 << 15),
            // A flow has two entries.
            ct: self.max_flows * 2,
            ..heddle_bpf::Sizes::default()
        }
    }
}

/// The dataplane.
#[derive(Debug)]
pub struct Ebpf {
    options: Options,
    cgroup: PathBuf,
    datapath: Datapath,
    kernel: Kernel,
    /// `None` before the first observation.
    state: Option<State>,
    collector: Collector,
    /// Lives as long as the dataplane.
    _routes: RouteCounter,
    sweeper: Option<Sweeper>,
    projector: Projector,
    netlink: Socket,
    /// Cookie of the network namespace that the daemon is in; 0 where the kernel does not tell it.
    netns: u64,
    /// Interface indices of pods' veths that have their programs.
    pods: BTreeSet<u32>,
    /// How much the maps hold now.
    sizes: MapSizes,
    succession: Succession,
    /// How often all pods are still to be looked at again.
    looks: u32,
    /// All was read a moment ago, and what that took is not given back yet.
    untidy: bool,
    /// That the table of flows is nearly full was said.
    told: bool,
}

impl Ebpf {
    /// Loads the programs over the maps that are pinned, or over new ones. Attaches nothing yet. To be called
    /// in the node's network namespace.
    ///
    /// # Errors
    /// [`Failure::Unsupported`] names what the kernel, its set-up or this build lacks.
    pub fn open(options: &Options) -> Result<Self, Failure> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        place::check_release(&read("/proc/sys/kernel/osrelease")).map_err(Failure::unsupported)?;
        place::check_rights(&read("/proc/self/status")).map_err(Failure::unsupported)?;
        let cgroup = place::cgroup_root(
            options.cgroup_root.as_deref(),
            &read("/proc/self/mountinfo"),
            place::is_cgroup2,
        )
        .map_err(Failure::unsupported)?;
        let pins = Pins::new(&options.bpf_root);
        let sizes = grow::at_start(&pins, options);
        let datapath = Datapath::open(pins, &sizes.sizes()).map_err(place::failure)?;
        match &datapath.opened {
            heddle_bpf::Opened::Fresh => tracing::info!("new maps"),
            heddle_bpf::Opened::Adopted => tracing::info!("maps of an earlier run adopted"),
            heddle_bpf::Opened::Resized(what) => tracing::info!(%what, "maps of an earlier run resized"),
            heddle_bpf::Opened::Rebuilt(why) => tracing::warn!(%why, "maps of an earlier run replaced"),
        }
        let succession = match &datapath.opened {
            _ if !datapath.is_succession().map_err(place::failure)? => Succession::Done,
            // They hold what those hold that are in use.
            heddle_bpf::Opened::Resized(_) => Succession::Due,
            _ => Succession::Waits,
        };
        let kernel = Kernel::open(&datapath.pins).map_err(kernel::Error::failure)?;
        let collector = Collector::start(&datapath.pins).map_err(place::failure)?;
        let datapath_pins = datapath.pins.clone();
        let sweeper = options.helper.as_ref().map(|helper| Sweeper::start(&datapath.pins, helper));
        let netlink = Socket::open()?;
        Ok(Self {
            options: options.clone(),
            cgroup,
            datapath,
            kernel,
            state: None,
            collector,
            _routes: RouteCounter::start(&datapath_pins).map_err(place::failure)?,
            sweeper: sweeper.transpose().map_err(place::failure)?,
            projector: Projector::default(),
            netns: own_namespace(&netlink),
            netlink,
            pods: BTreeSet::new(),
            sizes,
            succession,
            looks: 0,
            untidy: false,
            told: false,
        })
    }

    /// The state that the maps are in, read if it is not known.
    fn state(&mut self) -> Result<&mut State, kernel::Error> {
        let state = match self.state.take() {
            Some(state) if !state.stale => state,
            before => self.kernel.read(before.as_ref(), self.projector.held())?,
        };
        Ok(self.state.insert(state))
    }

    fn write_config(&mut self, devices: &Devices) -> Result<(), Error> {
        let range = sysctl::read(&sysctl::Key::new(["net", "ipv4", "ip_local_port_range"]));
        let ports = settings::snat_ports(range.ok().as_deref().and_then(settings::parse_port_range));
        let Options { remote, vni, vxlan_port, .. } = self.options;
        let wanted = settings::config(devices, remote, vni, vxlan_port, ports);
        let fail = |source| heddle_bpf::Error::Map { name: "config", source: Box::new(source) };
        let found: Config = self.kernel.maps.config.get(&0, 0).map_err(fail)?;
        let wanted = Config {
            // Tests hold the clock; a daemon never writes it.
            fixed_time: found.fixed_time,
            fixed_random: found.fixed_random,
            host_netns: self.netns,
            flags: self.flags(),
            ..wanted
        };
        if found == wanted {
            return Ok(());
        }
        // The ports of `snat` are looked for before there are any, and after there are any.
        let ports = |config: &Config| (config.snat_port_min, config.snat_port_max);
        let (before, after) = (ports(&found), ports(&wanted));
        let both = (before.0.min(after.0), before.1.max(after.1));
        self.take_ports(if before.1 == 0 { after } else { both })?;
        self.kernel.maps.config.set(0, wanted, 0).map_err(fail)?;
        Ok(self.take_ports(after)?)
    }

    /// What the programs are told of another proxy.
    fn flags(&self) -> u16 {
        if self.options.other.is_there() { CONFIG_OTHER_PROXY } else { 0 }
    }

    /// Another proxy has come or gone.
    fn write_flags(&mut self) -> Result<(), Error> {
        let fail = |source| heddle_bpf::Error::Map { name: "config", source: Box::new(source) };
        let found: Config = self.kernel.maps.config.get(&0, 0).map_err(fail)?;
        let wanted = Config { flags: self.flags(), ..found };
        // Before the first one is written there is nothing to be changed.
        if found != wanted && found.snat_port_max != 0 {
            self.kernel.maps.config.set(0, wanted, 0).map_err(fail)?;
        }
        Ok(())
    }

    /// Packets from outside to these ports are looked at, and to none but these for the sake of `snat`.
    fn take_ports(&mut self, ports: (u16, u16)) -> Result<(), kernel::Error> {
        self.state()?;
        let Some(state) = &mut self.state else { return Ok(()) };
        state.ledger.set_snat(ports);
        state.pay(&mut self.kernel)
    }

    /// Attaches the pods' programs to veths (and to the bridges that veths are ports of) that do not have them:
    /// those that were made while no daemon had pinned its programs, or by another plugin. `all`: looks at every
    /// one again.
    fn attach_pods(&mut self, all: bool) -> Result<(), Error> {
        let links = link::list(&mut self.netlink)?;
        let pods: BTreeMap<u32, String> = links
            .iter()
            .filter(|link| link.name.starts_with(POD_PREFIX) && link.kind.as_deref() == Some("veth"))
            .map(|link| {
                // Pods on a bridge are reached by the bridge; so is the program that looks at what they send to
                // others than each other.
                let bridge = |other: &&link::Link| {
                    Some(other.index) == link.master && other.kind.as_deref() == Some("bridge")
                };
                links.iter().find(bridge).unwrap_or(link)
            })
            .map(|link| (link.index, link.name.clone()))
            .collect();
        let gone = self.pods.len();
        self.pods.retain(|index| pods.contains_key(index));
        let gone = gone != self.pods.len();
        let mut failed = None;
        for (index, name) in &pods {
            if !all && self.pods.contains(index) {
                continue;
            }
            let attached = [TcHook::PodOut, TcHook::Pod]
                .into_iter()
                .try_for_each(|hook| self.datapath.attach_tcx(hook, name, *index).map(drop));
            match attached {
                Ok(()) => drop(self.pods.insert(*index)),
                // The plugin is at it at this very moment, or the pod has gone: seen at the next look.
                Err(heddle_bpf::Error::Attach { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::EEXIST | libc::ENODEV | libc::ENOLINK)) => {
                }
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        if all || gone {
            for hook in [TcHook::Pod, TcHook::PodOut] {
                let keep = |place: &str| pods.values().any(|name| name == place);
                self.datapath.retain_links(hook.name(), keep)?;
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// What of the plan failed.
    fn carry_out(&mut self, plan: &Plan) -> apply::Failures {
        if let Err(error) = self.state() {
            return plan
                .iter()
                .map(|step| (step.part(), compile::Refused::Write(error.to_string())))
                .collect();
        }
        let Some(state) = &mut self.state else { return Vec::new() };
        let (failed, owed) = state.apply(plan, &mut self.kernel);
        if let Some(error) = owed {
            tracing::warn!(%error, "what is left over could not be put away; it will be tried again");
        }
        failed
    }

    /// The XDP program of the mode that is wanted, on these devices and no others. One of another mode goes first: a
    /// device has one at a time, and without any all is done by the tcx programs.
    fn attach_xdp(&self, devices: &[(String, u32)]) -> Result<(), heddle_bpf::Error> {
        let wanted = self.options.xdp.mode();
        for mode in XdpMode::ALL {
            let keep = |place: &str| wanted == Some(mode) && devices.iter().any(|(name, _)| name == place);
            self.datapath.retain_links(mode.name(), keep)?;
        }
        let Some(mode) = wanted else { return Ok(()) };
        devices.iter().try_for_each(|(name, index)| self.datapath.attach_xdp(mode, name, *index).map(drop))
    }

    /// Attaches `hook` to these devices and to no others.
    fn attach(&self, hook: TcHook, devices: &[(&str, u32)]) -> Result<(), heddle_bpf::Error> {
        let mut failed = None;
        for (name, index) in devices {
            if let Err(error) = self.datapath.attach_tcx(hook, name, *index) {
                failed.get_or_insert(error);
            }
        }
        self.datapath.retain_links(hook.name(), |place| devices.iter().any(|(name, _)| *name == place))?;
        failed.map_or(Ok(()), Err)
    }
}

impl Dataplane for Ebpf {
    fn project(&mut self, desired: &ServiceTable) -> (ServiceTable, Vec<Unsupported>) {
        self.projector.project(desired)
    }

    fn devices(&mut self, devices: &Devices) -> Result<(), Error> {
        self.write_config(devices)?;
        match self.succession {
            Succession::Done => {}
            // What an earlier daemon has attached forwards as it did until the sources have said what there is.
            Succession::Waits => return Ok(()),
            Succession::Due => self.succeed()?,
        }
        let named = |devices: &[crate::dataplane::Device]| -> Vec<(String, u32)> {
            devices.iter().map(|device| (device.name.clone(), device.index)).collect()
        };
        let (underlay, overlay) = (named(&devices.underlay), named(devices.overlay.as_slice()));
        // What lets replies out is there before what lets requests in. One that fails does not stop the
        // others.
        let mut outcome: Result<(), Error> = self.attach_pods(true);
        for (hook, devices) in
            [(TcHook::OverlayIn, &overlay), (TcHook::UnderlayOut, &underlay), (TcHook::UnderlayIn, &underlay)]
        {
            let devices: Vec<_> = devices.iter().map(|(name, index)| (name.as_str(), *index)).collect();
            let attached = self.attach(hook, &devices);
            outcome = outcome.and(attached.map_err(Into::into));
        }
        outcome = outcome.and(self.attach_xdp(&underlay).map_err(Into::into));
        outcome.and(self.datapath.attach_cgroup(&self.cgroup).map(drop).map_err(Into::into))?;
        Ok(self.datapath.release()?)
    }

    fn synced(&mut self) {
        if self.succession == Succession::Waits {
            self.succession = Succession::Due;
        }
    }

    fn observe(&mut self) -> Result<ServiceTable, Error> {
        if let Some(state) = &mut self.state {
            state.stale = true;
        }
        Ok(self.state()?.table())
    }

    fn recall(&self) -> Option<ServiceTable> {
        self.state.as_ref().filter(|state| !state.stale).map(State::table)
    }

    fn settled(&mut self, table: &ServiceTable) {
        if let Some(state) = &mut self.state {
            state.share(table);
        }
        self.untidy = true;
    }

    fn apply(&mut self, plan: &Plan) -> Outcome {
        let mut outcome = Outcome::done();
        let mut failed = self.carry_out(plan);
        if self.make_room(plan, failed.iter().map(|(_, why)| why)) {
            let again = plan.iter().filter(|step| failed.iter().any(|(part, _)| *part == step.part()));
            failed = self.carry_out(&again.cloned().collect());
        }
        failed.into_iter().for_each(|(part, why)| outcome.fail(part, why));
        if let Some(sweeper) = &self.sweeper
            && plan.iter().any(|step| step.effect() != Effect::Create)
        {
            sweeper.wake();
        }
        outcome
    }

    fn counters(&mut self) -> Result<Counters, Error> {
        let mut counters = counters(&self.kernel.maps)?;
        let flows = self.collector.sizes();
        counters.0.insert("ct_entries".into(), flows.answered);
        counters.0.insert("ct_new_entries".into(), flows.unanswered);
        counters.0.insert("ct_collected".into(), self.collector.collected());
        if let Some(sweeper) = &self.sweeper {
            counters.0.insert("sockets_destroyed".into(), sweeper.destroyed());
            counters.0.insert("sockets_stale".into(), sweeper.left());
        }
        Ok(counters)
    }

    fn tend(&mut self) -> Result<(), Error> {
        let pods = match self.succession {
            Succession::Waits | Succession::Due => Ok(()),
            Succession::Done => {
                self.looks = self.looks.saturating_sub(1);
                self.attach_pods(self.looks > 0).and_then(|()| self.watch_flows())
            }
        };
        if std::mem::take(&mut self.untidy) {
            heap::trim();
        }
        if self.state.as_ref().is_some_and(State::has_remains) {
            self.state()?;
            if let Some(state) = &mut self.state {
                state.settle(&mut self.kernel)?;
            }
        }
        let pods = pods.and(self.write_flags());
        match self.collector.error() {
            Some(error) => pods.and(Err(format!("cannot collect flows: {error}").into())),
            None => pods,
        }
    }
}

/// The programs' counters, by name.
pub fn counters(maps: &heddle_bpf::Maps) -> Result<Counters, heddle_bpf::Error> {
    let read = |(counter, name): &(Counter, &str)| Ok((name.to_string(), maps.counter(*counter)?));
    Counter::ALL.iter().map(read).collect::<Result<_, _>>().map(Counters)
}

/// Detaches and unpins everything below `bpf_root`, of every layout. True if there was something.
pub fn remove(bpf_root: &Path) -> Result<bool, Error> {
    let pins = Pins::new(bpf_root);
    let others = pins.others()?;
    let there = pins.exist()? || !others.is_empty();
    if there {
        others.iter().try_for_each(Pins::remove)?;
        pins.remove()?;
    }
    Ok(there)
}

/// The cookie of this node's network namespace, by which programs tell its sockets from pods'. Asked of a socket that is
/// there: to enter a namespace, even one's own, takes CAP_SYS_ADMIN.
fn own_namespace(netlink: &Socket) -> u64 {
    netlink.namespace_cookie().unwrap_or_else(|error| {
        tracing::warn!("the node's own sockets are taken for a pod's: {error}");
        0
    })
}
