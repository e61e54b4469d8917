//! Bodies around the sizes at which they are cut into frames.

use bytes::Bytes;

use super::{Behaviour, Need};
use crate::Scene;

pub(super) fn behaviours() -> Vec<Behaviour> {
    vec![Behaviour::new(bodies_around_a_frame_arrive_whole, &[Need::Topology])]
}

/// The largest frames that are usual: AMQP 0.9.1's as RabbitMQ proposes it, and smaller ones.
const FRAMES: [usize; 3] = [4_096, 65_536, 131_072];

/// What a frame of AMQP 0.9.1 has around its payload, and one of AMQP 1.0 before it.
const OVERHEADS: [usize; 2] = [0, 8];

async fn bodies_around_a_frame_arrive_whole(scene: Scene) {
    let mut sizes = vec![0, 1];
    for frame in FRAMES {
        for overhead in OVERHEADS {
            for frames in [1, 2, 5] {
                let edge = frames * (frame - overhead);
                sizes.extend([edge - 1, edge, edge + 1]);
            }
        }
    }
    // The period is prime to every size of a frame, so that swapped frames show.
    let bodies: Vec<Bytes> =
        sizes.iter().map(|size| (0..*size).map(|at| (at % 251) as u8).collect()).collect();
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        scene.publish(&queue, bodies.clone()).await;
        let mut reader = scene.read(&queue, 10).await;
        for sent in &bodies {
            let delivery = reader.next().await;
            let got = &delivery.message().body;
            assert_eq!(got.len(), sent.len(), "the size of a body through '{queue}'");
            assert!(got == sent, "a body of {} bytes through '{queue}' changed", sent.len());
            delivery.ack();
        }
    }
}
