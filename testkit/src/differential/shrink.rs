//! Makes a failing program as short as it fails with.

use super::program::Program;

/// Leaves steps out, many at a time and then one at a time, for as long as the program fails and up
/// to `tries` runs; gives it with what it fails with.
pub(super) async fn shrink(
    mut program: Program,
    mut failure: String,
    mut tries: usize,
    mut fails: impl AsyncFnMut(&Program) -> Option<String>,
) -> (Program, String) {
    let mut chunk = (program.steps.len() / 2).max(1);
    loop {
        let mut shorter = false;
        // From the end: what comes after the failure goes first.
        let mut end = program.steps.len();
        while end > 0 {
            if tries == 0 {
                return (program, failure);
            }
            tries -= 1;
            let start = end.saturating_sub(chunk);
            let mut candidate = program.clone();
            candidate.steps.drain(start..end);
            if let Some(text) = fails(&candidate).await {
                (program, failure) = (candidate, text);
                shorter = true;
            }
            end = start.min(program.steps.len());
        }
        if chunk > 1 {
            chunk /= 2;
        } else if !shorter {
            return (program, failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::{Capabilities, Topology};

    use super::{
        super::{dice, generate, program::Step, run::Protocol},
        *,
    };

    #[tokio::test]
    async fn what_does_not_matter_goes() {
        let all = Capabilities::minimal();
        let program = generate::program(7, dice::Means::of(&all, &all, Protocol::Amqp091));
        let matters = |step: &Step| matches!(step, Step::Declare { topology, .. } if *topology != Topology::new());
        assert!(program.steps.len() > 2);
        let (short, failure) = shrink(program, String::new(), 1_000, async |program: &Program| {
            let count = program.steps.iter().filter(|step| matters(step)).count();
            (count >= 2).then(|| format!("{count} declare"))
        })
        .await;
        assert_eq!((short.steps.len(), &*failure), (2, "2 declare"));
    }
}
