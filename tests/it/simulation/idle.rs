//! Knowing when nothing moves: the runtime has one thread and tells when it has nothing left to do.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, Waker},
};

use tokio::runtime::{Builder, Runtime};

/// Tells when a runtime has run out of work.
#[derive(Clone, Default)]
pub struct Idle(Arc<Mutex<Option<Waker>>>);

impl Idle {
    /// A runtime with one thread, which tells when it runs out of work.
    pub fn runtime() -> (Runtime, Self) {
        let idle = Self::default();
        let told = idle.clone();
        let runtime = Builder::new_current_thread()
            .enable_time()
            .on_thread_park(move || told.tell())
            .build()
            .expect("a runtime");
        (runtime, idle)
    }

    fn tell(&self) {
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Resolves when every task waits. For the future that the runtime blocks on.
    pub async fn reached(&self) {
        let mut is_armed = false;
        poll_fn(|context| {
            let mut waker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if is_armed && waker.is_none() {
                return Poll::Ready(());
            }
            is_armed = true;
            *waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
