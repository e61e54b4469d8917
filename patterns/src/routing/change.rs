use postrider_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::table::{MAX_RULES, Otherwise, RoutingTable, Rule};

/// A step from one table to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Change {
    /// Adds a rule.
    Add {
        /// The rule.
        rule: Rule,
        /// The name of the rule that comes after it; `None` for the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<String>,
    },
    /// Puts a rule in the place of the one of its name.
    Replace(Rule),
    /// Removes the rule of this name.
    Remove(String),
    /// Sets what becomes of messages that no rule is for.
    Otherwise(Otherwise),
}

impl RoutingTable {
    /// The table after all of these changes.
    ///
    /// # Errors
    ///
    /// When one of them cannot be made, or the table would be none that a router takes.
    pub fn changed(&self, changes: Vec<Change>) -> Result<Self> {
        let mut table = self.clone();
        for change in changes {
            table.change(change)?;
        }
        table.version = self.version.saturating_add(1);
        table.check()?;
        Ok(table)
    }

    fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Add { rule, before: None } => self.rules.push(rule),
            Change::Add { rule, before: Some(before) } => {
                let place = self.place(&before)?;
                self.rules.insert(place, rule);
            }
            Change::Replace(rule) => {
                let place = self.place(&rule.name)?;
                self.rules[place] = rule;
            }
            Change::Remove(name) => {
                let place = self.place(&name)?;
                self.rules.remove(place);
            }
            Change::Otherwise(otherwise) => self.otherwise = otherwise,
        }
        // Before the next one, so that many changes cannot make it larger than it may ever be.
        if self.rules.len() > MAX_RULES {
            let why = format!("a table has at most {MAX_RULES} rules");
            return Err(Error::new(ErrorKind::Invalid, "route", why));
        }
        Ok(())
    }

    fn place(&self, name: &str) -> Result<usize> {
        self.rules.iter().position(|rule| rule.name == name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "route", "the table has no such rule")
                .with_context("rule", name.to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Condition, Field, Route};

    fn rule(name: &str, to: &str) -> Rule {
        Rule::new(name, Condition::Always, [Route::queue(to.to_owned())])
    }

    fn names(table: &RoutingTable) -> Vec<&str> {
        table.rules.iter().map(|rule| rule.name.as_str()).collect()
    }

    #[test]
    fn changes_are_made_together_or_not_at_all() {
        let table =
            RoutingTable { rules: vec![rule("a", "1"), rule("c", "3")], ..Default::default() };
        let add = Change::Add { rule: rule("b", "2"), before: Some("c".to_owned()) };
        let next = table.changed(vec![add.clone(), Change::Replace(rule("a", "9"))]).unwrap();
        assert_eq!((names(&next), next.version), (vec!["a", "b", "c"], 1));
        assert_eq!(next.rules[0].to, [Route::queue("9")]);
        let next = next.changed(vec![Change::Remove("c".to_owned())]).unwrap();
        assert_eq!((names(&next), next.version), (vec!["a", "b"], 2));
        for wrong in [
            Change::Remove("x".to_owned()),
            Change::Replace(rule("x", "1")),
            Change::Add { rule: rule("x", "1"), before: Some("y".to_owned()) },
            Change::Add { rule: rule("a", "1"), before: None },
            Change::Add { rule: rule("", "1"), before: None },
            Change::Add { rule: rule("x", ""), before: None },
            Change::Add { rule: rule("x", &"q".repeat(256)), before: None },
            Change::Add { rule: Rule::new("x", Condition::Always, []), before: None },
            Change::Otherwise(Otherwise::Send(Vec::new())),
        ] {
            assert!(table.changed(vec![add.clone(), wrong.clone()]).is_err(), "{wrong:?}");
        }
        assert_eq!(names(&table), ["a", "c"]);
    }

    #[test]
    fn a_table_gets_no_more_rules_than_it_may_have() {
        let rules = (0..MAX_RULES).map(|number| rule(&number.to_string(), "q")).collect();
        let full = RoutingTable { rules, ..Default::default() };
        let add = Change::Add { rule: rule("x", "q"), before: None };
        assert!(full.changed(vec![add.clone()]).is_err());
        assert!(full.changed(vec![Change::Remove("7".to_owned()), add]).is_ok());
    }

    #[test]
    fn a_table_grows_no_larger_than_it_may_be() {
        let heavy = |name: &str| {
            let text = "x".repeat(60_000);
            Rule::new(name, Condition::equals(Field::Type, text), [Route::queue("q")])
        };
        let mut table = RoutingTable::default();
        let refused = (0..100).find_map(|number| {
            let add = Change::Add { rule: heavy(&number.to_string()), before: None };
            match table.changed(vec![add]) {
                Ok(next) => {
                    table = next;
                    None
                }
                Err(error) => Some(error),
            }
        });
        assert!(refused.unwrap().to_string().contains("bytes"));
        assert_eq!(table.rules.len(), 17);
    }
}
