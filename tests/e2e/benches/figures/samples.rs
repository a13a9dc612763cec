//! The samples of one figure, and how samples of several are taken in turn.

use anyhow::Result;

/// Never empty once measured.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value that `percent` of the samples do not exceed (nearest rank).
    pub fn percentile(&self, percent: f64) -> f64 {
        let sorted = self.sorted();
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
        (middle(sorted.len().saturating_sub(1) / 2) + middle(sorted.len() / 2)) / 2.0
    }

    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Sample by sample of the same round.
    pub fn minus(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(sample, base)| sample - base).collect())
    }

    /// Sample by sample of the same round: what else the machine does falls on both.
    pub fn over(&self, base: &Self) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(sample, base)| sample / base).collect())
    }

    /// `lowest-highest`.
    pub fn spread(&self, digits: usize) -> String {
        format!("{:.digits$}-{:.digits$}", self.percentile(0.0), self.percentile(100.0))
    }
}

/// One of the things that are compared.
pub struct Case<'a> {
    sample: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Case<'a> {
    pub fn new(sample: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { sample: Box::new(sample) }
    }
}

/// Every case once a round; every other round backwards, so that a drift falls on all alike.
pub fn interleaved(rounds: usize, cases: &mut [Case<'_>]) -> Result<Vec<Samples>> {
    let mut samples = vec![Samples::default(); cases.len()];
    for round in 0..rounds {
        for step in 0..cases.len() {
            let at = if round % 2 == 0 { step } else { cases.len() - 1 - step };
            let sample = (cases[at].sample)()?;
            samples[at].push(sample);
        }
    }
    Ok(samples)
}
