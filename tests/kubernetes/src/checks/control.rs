//! The control plane goes and comes back while services are asked.

use std::time::{Duration, Instant};

use heddle_lab::patient;
use serde_json::Value;

use super::lateness::SLICE;
use super::life::{clients, doors, open};
use super::stage::{Stage, Standing};
use super::{ensure, size};
use crate::cluster::LIMIT;
use crate::control_plane::Component;
use crate::error::{Error, Result};
use crate::pods;

/// What is asked all the time: `web`, from everywhere, and over connections that stay.
fn busy(stage: &Stage, web: &[Standing]) -> Result<super::load::Clients> {
    let mut service = open("busy");
    service["spec"]["selector"]["app"] = "web".into();
    let service = stage.service(&service)?;
    let mut clients = clients(stage, &service, web)?;
    let (vip, ports) = doors(stage, &service, true)?;
    clients.streams(&web[2].place, vip)?;
    clients.streams(stage.cluster.lab().client(), ports[1])?;
    clients.datagrams(&web[0].place, vip)?;
    Ok(clients)
}

/// How soon a change must be served once the controller manager has written its endpoints.
const SOON: Duration = Duration::from_secs(5);

/// A change is seen everywhere soon after the API server serves again.
fn takes_changes(stage: &Stage, web: &[Standing], name: &str) -> Result<()> {
    let service = stage.service(&pods::service(name, "web"))?;
    let (selector, count) = (format!("kubernetes.io/service-name={name}"), web.len());
    // The controller manager notices in its own time that the API server is back.
    stage.cluster.api().wait_all(SLICE, Some("default"), &selector, LIMIT, move |slices| {
        let full = |slice: &&Value| slice["endpoints"].as_array().is_some_and(|list| list.len() == count);
        slices.len() == 2 && slices.iter().all(full)
    })?;
    let begun = Instant::now();
    for v4 in [true, false] {
        let vip = pods::ip(&service, v4).ok_or_else(|| Error::new("read a service", &service))?;
        for standing in web {
            stage.await_answer(&standing.place, (vip, 80).into())?;
        }
    }
    println!("    {name} is served {:?} after its endpoints were written", begun.elapsed());
    ensure(begun.elapsed() <= patient(SOON), || {
        format!("{name} was served only after {:?}", begun.elapsed())
    })?;
    stage.withdraw(name)
}

/// Restarted, then killed for `HEDDLE_KUBERNETES_OUTAGE` seconds (10): nothing is lost.
pub fn api_server_away(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let (plane, clients) = (stage.cluster.plane(), busy(stage, &web)?);
    // Asked to end it would wait a minute for its watchers.
    plane.kill(Component::ApiServer);
    plane.start(Component::ApiServer)?;
    takes_changes(stage, &web, "after-restart")?;
    plane.kill(Component::ApiServer);
    clients.go_on(Duration::from_secs(size("HEDDLE_KUBERNETES_OUTAGE", 10) as u64))?;
    plane.start(Component::ApiServer)?;
    takes_changes(stage, &web, "after-outage")?;
    clients.go_on(Duration::from_secs(2))?;
    clients.assert_clean()?;
    stage.withdraw("busy")
}

/// Killed and started again below the API server.
pub fn etcd_restarted(stage: &Stage) -> Result<()> {
    let web = stage.web()?;
    let (plane, clients) = (stage.cluster.plane(), busy(stage, &web)?);
    plane.kill(Component::Etcd);
    clients.go_on(Duration::from_secs(2))?;
    plane.start(Component::Etcd)?;
    takes_changes(stage, &web, "after-etcd")?;
    clients.go_on(Duration::from_secs(1))?;
    clients.assert_clean()?;
    stage.withdraw("busy")
}
