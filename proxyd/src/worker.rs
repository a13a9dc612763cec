//! Threads that work beside the loop for as long as their owner lives.

use std::io;
use std::thread::{Builder, JoinHandle};

/// A thread that waits for its owner: it holds the one end of something, `S` is the other. When the owner goes, that
/// end is closed first, which the thread takes for the end, and then it is awaited.
#[derive(Debug)]
pub struct Worker<S> {
    end: Option<S>,
    thread: Option<JoinHandle<()>>,
}

impl<S> Worker<S> {
    /// Starts `work`, which must return soon after `end` is dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(name: &str, end: S, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let thread = Builder::new().name(name.into()).spawn(work)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }

    /// The owner's end.
    pub const fn end(&self) -> Option<&S> {
        self.end.as_ref()
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            // It panics never; and there is nothing left to do about it here.
            let _ = thread.join();
        }
    }
}
