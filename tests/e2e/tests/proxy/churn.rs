//! Services that change as fast as they can be written: no answer comes from a backend that the service never
//! had.

use std::time::{Duration, Instant};

use heddle_lab::{Load, Result};

use crate::world::{SOLO, WEB, World, strict};

/// How long it goes on: `HEDDLE_CHURN` seconds.
fn duration() -> Duration {
    let told = std::env::var("HEDDLE_CHURN").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(told.unwrap_or(8))
}

#[test]
fn fault_091_churn_misdelivers_nothing() -> Result<()> {
    let world = World::start(strict())?;
    // Their slots and extents are taken from one pool: what one gives up the other gets next.
    let web3 = world.cluster.backend(3, "web-3", WEB.target)?;
    let [one, two, three] = [world.web1.endpoint(), world.web2.endpoint(), web3.endpoint()];
    let client = world.cluster.client();
    let mut loads = Vec::new();
    for (named, servers) in [(WEB, &["web-1", "web-2"][..]), (SOLO, &["web-3"][..])] {
        for to in [named.published(world.cluster.node(1).ip4()), named.published(world.cluster.node(2).ip6())]
        {
            loads.push(
                Load::connects(to)
                    .rate(200)
                    .limit(Duration::from_secs(5))
                    .expect(servers.to_vec())
                    .start(client)?,
            );
            loads.push(Load::datagrams(to).rate(200).expect(servers.to_vec()).start(client)?);
        }
        for to in [named.cluster(true), named.cluster(false)] {
            loads.push(
                Load::connects(to)
                    .rate(200)
                    .limit(Duration::from_secs(5))
                    .expect(servers.to_vec())
                    .start(&world.visitor)?,
            );
            loads.push(
                Load::unconnected_datagrams(to).rate(200).expect(servers.to_vec()).start(&world.visitor)?,
            );
        }
    }
    // SOLO begins with another backend than it has from here on.
    world.publish(SOLO, std::slice::from_ref(&three))?;
    for load in &loads {
        load.wait_for(1, Duration::from_secs(20))?;
    }
    let before: Vec<_> = loads.iter().map(|load| load.report().misdelivered).collect();
    let end = Instant::now() + duration();
    let mut rounds = 0;
    while Instant::now() < end {
        let (web, solo) = match rounds % 4 {
            0 => (vec![one.clone()], vec![]),
            1 => (vec![one.clone(), two.clone()], vec![three.clone()]),
            2 => (vec![], vec![three.clone()]),
            _ => (vec![two.clone()], vec![three.clone()]),
        };
        world.cluster.publish(&WEB.service(), &web)?;
        world.cluster.publish(&SOLO.service(), &solo)?;
        rounds += 1;
        // The traffic sets the pace: some answers a round.
        loads[0].wait_until(Duration::from_millis(40), |_| false).ok();
    }
    world.publish(WEB, &[one, two])?;
    world.publish(SOLO, &[three])?;
    for load in &loads {
        load.wait_for(20, Duration::from_secs(20))?;
    }
    assert!(rounds > 50, "{rounds} rounds");
    for (load, before) in loads.into_iter().zip(before) {
        let report = load.stop();
        assert_eq!(report.misdelivered, before, "{report}");
    }
    Ok(())
}
