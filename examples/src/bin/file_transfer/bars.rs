//! What people see of transfers while they last.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use postrider::Progress;
use tokio::{sync::watch, task::JoinHandle};

const WITH_LENGTH: &str =
    "{prefix:9} {msg}  {bar:30}  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
const WITHOUT: &str = "{prefix:9} {msg}  {spinner}  {bytes}  {bytes_per_sec}";

/// The bars of all transfers, on stderr; they hide when that is no terminal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bars(MultiProgress);

impl Bars {
    /// Shows how far a transfer is, until what is given back is dropped.
    pub(crate) fn follow(
        &self,
        what: &'static str,
        name: &str,
        mut progress: watch::Receiver<Progress>,
    ) -> Bar {
        let length = progress.borrow().length;
        let bar = self.0.add(length.map_or_else(ProgressBar::no_length, ProgressBar::new));
        let template = if length.is_some() { WITH_LENGTH } else { WITHOUT };
        // A template that cannot be read would only cost the looks.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.set_prefix(what);
        bar.set_message(name.to_owned());
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            loop {
                shown.set_position(progress.borrow_and_update().bytes);
                if progress.changed().await.is_err() {
                    return;
                }
            }
        });
        Bar { bar, task }
    }

    /// Prints a line on stderr, which the bars make way for.
    pub(crate) fn warn(&self, line: &str) {
        self.0.suspend(|| eprintln!("file_transfer: {line}"));
    }

    /// Prints a line on stdout, which the bars make way for.
    pub(crate) fn say(&self, line: &str) {
        self.0.suspend(|| println!("{line}"));
    }
}

/// A bar that is shown.
pub(crate) struct Bar {
    bar: ProgressBar,
    task: JoinHandle<()>,
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}
