//! Loads and servers count right: each fault of the network shows up as what it is.

use std::time::Duration;

use heddle_lab::{Ask, Error, Lab, Load, Result};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn an_unhurt_network_is_reported_clean() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let (node, client) = (lab.node(1), lab.client());
    let _server = node.serve("one", 80)?;
    for to in [node.ip4(), node.ip6()] {
        let loads = [
            Load::connects((to, 80)).rate(500),
            Load::streams((to, 80), 3),
            Load::datagrams((to, 80)).rate(500),
            Load::unconnected_datagrams((to, 80)).rate(500).padding(1000),
        ];
        let running: Vec<_> =
            loads.into_iter().map(|l| l.expect(["one"]).start(client)).collect::<Result<_>>()?;
        for load in running {
            load.wait_for(100, SOON)?;
            let report = load.stop();
            report.assert_clean();
            assert_eq!(report.sent, report.received, "{report}");
            assert_eq!(report.by_backend["one"], report.received);
            assert_eq!(report.by_client[&client.ip(to.is_ipv4())], report.received);
            assert!(report.max_gap < Duration::from_secs(1), "{report}");
        }
    }
    Ok(())
}

#[test]
fn an_answer_of_a_stranger_is_misdelivered() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let to = (lab.node(1).ip4(), 80);
    let _server = lab.node(1).serve("stranger", 80)?;
    for load in [Load::connects(to), Load::datagrams(to)] {
        let load = load.expect(["friend"]).start(lab.client())?;
        load.wait_until(SOON, |report| report.misdelivered > 3)?;
        let report = load.stop();
        assert_eq!((report.received, report.misdelivered), (0, report.sent), "{report}");
        assert!(!report.is_clean());
    }
    Ok(())
}

#[test]
fn a_dead_server_refuses_and_resets() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let to = (lab.node(1).ip4(), 80);
    let server = lab.node(1).serve("one", 80)?;
    let stream = Load::streams(to, 1).start(lab.client())?;
    let connects = Load::connects(to).start(lab.client())?;
    let datagrams = Load::datagrams(to).start(lab.client())?;
    for load in [&stream, &connects, &datagrams] {
        load.wait_for(10, SOON)?;
    }
    drop(server);
    stream.wait_until(SOON, |report| report.resets == 1 && report.refused > 0)?;
    connects.wait_until(SOON, |report| report.refused > 3)?;
    datagrams.wait_until(SOON, |report| report.refused > 3)?;
    let _server = lab.node(1).serve("two", 80)?;
    connects.wait_until(SOON, |report| report.by_backend.contains_key("two"))?;
    Ok(())
}

#[test]
fn links_can_be_lossy_and_cut() -> Result<()> {
    let lab = Lab::builder().nodes(2).build()?;
    let to = (lab.node(2).ip4(), 80);
    let _server = lab.node(2).serve("two", 80)?;
    let load = Load::datagrams(to).rate(1000).limit(Duration::from_millis(300)).start(lab.node(1))?;
    load.wait_for(100, SOON)?;
    assert_eq!(load.report().lost, 0);
    lab.switch().lossy(&[("n2", 20)])?;
    load.wait_until(SOON, |report| report.lost > 20)?;
    assert!(lab.switch().lost()? > 20);
    lab.switch().lossy(&[])?;
    load.wait_for(300, SOON)?;

    lab.switch().cut("n2")?;
    assert!(lab.node(2).run("ip link show eth0")?.contains("NO-CARRIER"));
    let before = load.report().lost;
    load.wait_until(SOON, |report| report.lost > before + 50)?;
    lab.switch().restore("n2")?;
    load.wait_for(100, SOON)?;
    assert_eq!(load.stop().misdelivered, 0);
    Ok(())
}

#[test]
fn links_can_be_slow_where_the_kernel_can() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let _server = lab.node(1).serve("one", 80)?;
    match lab.switch().delay("n1", Duration::from_millis(50)) {
        // Not every kernel has netem. One that has not is named, and the link is left as it was.
        Err(Error::Unsupported(what)) => {
            assert!(what.contains("netem"), "{what}");
            assert!(!lab.switch().place().run("tc qdisc show dev n1")?.contains("netem"));
            Ask::new((lab.node(1).ip4(), 80)).udp(lab.client())?;
            return Ok(());
        }
        other => other?,
    }
    let begun = std::time::Instant::now();
    Ask::new((lab.node(1).ip4(), 80)).udp(lab.client())?;
    assert!(begun.elapsed() >= Duration::from_millis(50));
    Ok(())
}

#[test]
fn what_has_no_business_in_the_underlay_is_dropped_and_counted() -> Result<()> {
    let lab = Lab::builder().nodes(2).build()?;
    let (one, two) = (lab.node(1), lab.node(2));
    one.run("ip addr add 10.244.1.7/32 dev lo")?;
    two.run("ip route add 10.244.1.0/24 via 192.168.77.1")?;
    two.enter(|| {
        std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"x", "10.244.1.7:9")).map(drop)
    })?
    .expect("it is sent");
    assert_eq!(lab.switch().foreign()?, 1);
    assert_eq!(lab.switch().foreigners()?, ["192.168.77.2 . 10.244.1.7"]);
    Ok(())
}

#[test]
fn curl_is_answered() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let _server = lab.node(1).serve("one", 80)?;
    let client = lab.client();
    let answer = client.run("curl -sS --max-time 5 http://192.168.77.1/ http://[fd77::1]/")?;
    let seen: Vec<_> = answer.lines().map(|line| line.rsplit_once(':').map(|(start, _)| start)).collect();
    assert_eq!(seen, [Some("one 192.168.77.201"), Some("one [fd77::201]")], "{answer}");
    let size = client.run("curl -sS -o /dev/null -w %{size_download} http://192.168.77.1/bytes/3000000")?;
    assert_eq!(size, "3000000");
    Ok(())
}

/// A child that is being started has no copy of it: what is closed is closed at once.
#[test]
fn a_port_is_free_again_while_programs_are_started() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(1);
    std::thread::scope(|scope| {
        let programs = scope.spawn(|| (0..300).try_for_each(|_| node.run("true").map(drop)));
        let mut servers = 0;
        while !programs.is_finished() {
            drop(node.serve("again", 80)?);
            servers += 1;
        }
        assert!(servers > 10, "{servers}");
        programs.join().expect("it does not panic")
    })
}
