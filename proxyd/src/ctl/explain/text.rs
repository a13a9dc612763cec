//! The answer, for people.

use super::answer::{Answer, Client, Place, Verdict};
use crate::ctl::table;

impl Answer {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("client   {}\nasks     {}", self.client.text(), self.asked);
        if let Some(frontend) = &self.frontend {
            text += &format!(", service {}", frontend.name);
            let mut rules = Vec::new();
            rules.extend(frontend.local.then(|| "externalTrafficPolicy Local".to_owned()));
            rules.extend(frontend.affinity.map(|seconds| format!("session affinity for {seconds} s")));
            rules.extend(frontend.sources.then(|| "loadBalancerSourceRanges".to_owned()));
            if !rules.is_empty() {
                text += &format!(" ({})", rules.join(", "));
            }
        }
        text += &format!("\nanswer   {}\n", self.verdict_text());
        for why in &self.why {
            text += &format!("         {why}\n");
        }
        let rows = self.candidates.iter().map(|candidate| {
            vec![
                candidate.address.clone(),
                candidate.state.to_owned(),
                candidate.node.clone().unwrap_or_else(|| "-".into()),
                candidate.way.to_owned(),
                candidate.why_not.map_or_else(|| format!("{:.1} %", candidate.share * 100.0), str::to_owned),
            ]
        });
        text + &table::print("BACKEND STATE NODE BY GETS", rows)
    }

    fn verdict_text(&self) -> String {
        match self.verdict {
            Verdict::Backend => {
                match self.candidates.iter().filter(|c| c.share > 0.0).collect::<Vec<_>>()[..] {
                    [one] => format!("goes to {} by {}", one.address, one.way),
                    _ => "goes to one of the backends".into(),
                }
            }
            Verdict::Flow => {
                let backend = self.flow.as_ref().and_then(|flow| flow.backend.clone());
                format!("goes on to {}", backend.unwrap_or_else(|| "its backend".into()))
            }
            Verdict::Reject => "rejected".into(),
            Verdict::Drop => "dropped".into(),
            Verdict::NotAService => "no service of ours".into(),
        }
    }
}

impl Client {
    fn text(&self) -> String {
        let node = self.node.as_deref().unwrap_or("this node");
        let what = match self.place {
            Place::Host => format!("a process of {node}, this node"),
            Place::Pod => match &self.device {
                Some(device) => format!("a pod of {node}, this node, at {device}"),
                None => format!("a pod of {node}, this node"),
            },
            Place::OtherNode => format!("a process of {node}"),
            Place::OtherPod => format!("a pod of {node}"),
            Place::Outside => "outside the cluster".into(),
        };
        match (self.address, self.port) {
            (None, _) => what,
            (Some(ip), None) => format!("{ip}, {what}"),
            (Some(ip), Some(port)) => format!("{}, {what}", std::net::SocketAddr::new(ip, port)),
        }
    }
}
