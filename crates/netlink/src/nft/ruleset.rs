//! A static rule set: what it is to be, whether it is there, and how it comes there.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Base, Batch, Family, ListedChain, MapData, Nft, Rule, SetKey, Verdict};
use crate::Result;

/// Chains of one table, with the sets that their rules look into. Elements are not part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub family: Family,
    pub table: &'static str,
    pub sets: Vec<Set>,
    /// Chains that others jump to come before those.
    pub chains: Vec<Chain>,
}

/// A set or verdict map of a rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: &'static str,
    pub key: SetKey,
    pub verdicts: bool,
}

/// A chain and exactly what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// Set if packets enter it from a hook.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

impl Nft {
    /// Adds to `batch` what takes away these chains of anybody's, with their rules and with those of other chains of
    /// their tables that lead to them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_chains(&mut self, batch: &mut Batch, is_one: impl Fn(&ListedChain) -> bool) -> Result<()> {
        let mut tables: BTreeMap<(Family, String), BTreeSet<String>> = BTreeMap::new();
        for chain in self.chains()?.into_iter().filter(is_one) {
            tables.entry((chain.family, chain.table)).or_default().insert(chain.name);
        }
        for ((family, table), chains) in &tables {
            for rule in self.rules(*family, table, None)? {
                let leads = |action: &Action| match action {
                    Action::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => chains.contains(chain),
                    _ => false,
                };
                if !chains.contains(&rule.chain) && rule.actions.iter().any(leads) {
                    batch.delete_rule(*family, table, &rule.chain, rule.handle);
                }
            }
            chains.iter().for_each(|chain| batch.flush_chain(*family, table, chain));
            chains.iter().for_each(|chain| batch.delete_chain(*family, table, chain));
        }
        Ok(())
    }

    /// The chains that do not hold what they should, by one look at the table's rules. A chain that holds our
    /// rules was made with them, and a hook cannot be changed afterwards: it need not be looked at.
    pub fn missing<'a>(&mut self, ruleset: &'a Ruleset) -> Result<Vec<&'a Chain>> {
        let listed = self.rules(ruleset.family, ruleset.table, None)?;
        let holds = |chain: &Chain| {
            let there = listed.iter().filter(|rule| rule.chain == chain.name).map(|rule| &rule.comment);
            there.eq(chain.rules.iter().map(Rule::tag).collect::<Vec<_>>().iter())
        };
        Ok(ruleset.chains.iter().filter(|chain| !holds(chain)).collect())
    }

    /// Adds to `batch` what makes these chains of the rule set hold what they should, sets included.
    pub fn mend(&mut self, batch: &mut Batch, ruleset: &Ruleset, chains: &[&Chain]) -> Result<()> {
        let (family, table) = (ruleset.family, ruleset.table);
        batch.add_table(family, table);
        for set in &ruleset.sets {
            if set.verdicts {
                batch.add_map(family, table, set.name, set.key, MapData::Verdict);
            } else {
                batch.add_set(family, table, set.name, set.key);
            }
        }
        for chain in chains {
            let there = self.chain(family, table, &chain.name)?;
            // With another hook or priority it must go first; the policy alone can be changed.
            if there.is_some_and(|there| there.base.is_some() && there.base != chain.base) {
                batch.flush_chain(family, table, &chain.name);
                batch.delete_chain(family, table, &chain.name);
            }
            batch.add_chain(family, table, &chain.name, chain.base.as_ref());
            batch.flush_chain(family, table, &chain.name);
            for rule in &chain.rules {
                batch.add_rule(family, table, &chain.name, rule);
            }
        }
        Ok(())
    }
}
