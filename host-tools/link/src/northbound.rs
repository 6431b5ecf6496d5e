//! The passage between the server loops, which are tasks, and a master core, which lives in a
//! thread of its own with its own idea of time.

use helio_smp::{MAX_DATAGRAM, Rc, accept};
use tokio::sync::{mpsc, oneshot};

/// Opens a passage in which up to `waiting` requests may queue.
pub fn northbound(waiting: usize) -> (Northbound, Inbox) {
    let (to_core, questions) = mpsc::channel(waiting.max(1));
    (Northbound { to_core }, Inbox { questions })
}

/// The servers' end.
#[derive(Clone, Debug)]
pub struct Northbound {
    to_core: mpsc::Sender<Question>,
}

/// The core's end.
#[derive(Debug)]
pub struct Inbox {
    questions: mpsc::Receiver<Question>,
}

/// A request and the way back for its answer. Dropped, the client gets no answer and asks again.
#[derive(Debug)]
pub struct Question {
    /// As it came; may be no valid datagram.
    pub request: Vec<u8>,
    answer: oneshot::Sender<Vec<u8>>,
}

impl Question {
    /// Sends the answer on its way; an empty one is none. May be called much later: the core
    /// keeps the question while a slave is thinking.
    pub fn answer(self, datagram: &[u8]) {
        // Whoever asked may have gone meanwhile.
        let _ = self.answer.send(datagram.to_vec());
    }
}

impl Inbox {
    /// The next question, if one is there.
    pub fn poll(&mut self) -> Option<Question> {
        self.questions.try_recv().ok()
    }

    /// Sleeps until the next question; `None` when all servers have gone. Not for async code.
    pub fn wait(&mut self) -> Option<Question> {
        self.questions.blocking_recv()
    }
}

/// Nobody polls the [`Inbox`] any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl Northbound {
    /// The core's answer; empty when there is none. A full queue answers for itself that the
    /// server is busy.
    pub async fn ask(&self, request: &[u8]) -> Result<Vec<u8>, Closed> {
        let (answer, answered) = oneshot::channel();
        let question = Question {
            request: request.to_vec(),
            answer,
        };
        match self.to_core.try_send(question) {
            Ok(()) => Ok(answered.await.unwrap_or_default()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                let mut out = [0; MAX_DATAGRAM];
                let n = match accept(request, &mut out) {
                    Ok(request) => request.reply(&mut out).rc(Rc::Busy),
                    Err(n) => n,
                };
                Ok(out[..n].to_vec())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Closed),
        }
    }
}
