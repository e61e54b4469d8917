"""The user service, called by pika: a client that knows AMQP and docs/wire.md, and nothing of ours.

AMQP_URL says where; the service must be running there.
"""

import json
import os
import unittest
import uuid

import pika

QUEUE = "rpc_user_service"
SECONDS = 20


class Client:
    """Calls with replies in any order, over one exclusive reply queue."""

    def __init__(self):
        self.connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.reply_queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.basic_consume(self.reply_queue, self.on_reply, auto_ack=True)
        self.replies = {}

    def on_reply(self, _channel, _method, properties, body):
        self.replies[properties.correlation_id] = (json.loads(body), properties)

    def send(self, body):
        """Sends a request and gives its correlation id at once."""
        call = str(uuid.uuid4())
        properties = pika.BasicProperties(reply_to=self.reply_queue, correlation_id=call)
        self.channel.basic_publish("", QUEUE, body, properties, mandatory=True)
        return call

    def begin(self, method, params):
        return self.send(json.dumps({"method": method, "params": params}))

    def wait(self, *calls):
        """Waits for the replies to all of these calls."""
        for _ in range(SECONDS * 10):
            if all(call in self.replies for call in calls):
                return [self.replies.pop(call)[0] for call in calls]
            self.connection.process_data_events(time_limit=0.1)
        raise AssertionError(f"no reply to some of {len(calls)} calls within {SECONDS} s")

    def call(self, method, params):
        return self.wait(self.begin(method, params))[0]

    def close(self):
        self.connection.close()


class UserService(unittest.TestCase):
    def setUp(self):
        self.client = Client()
        self.addCleanup(self.client.close)

    def test_request_and_reply(self):
        reply = self.client.call("get_user_info", {"user_id": 4})
        self.assertEqual(
            reply,
            {
                "status": "success",
                "data": {
                    "user_id": 4,
                    "first_order": "1997-01-01",
                    "last_order": "1997-12-12",
                    "orders": 4,
                },
            },
        )
        profile = self.client.call("get_user_profile", {"user_id": "4"})["data"]
        self.assertEqual(profile["spent_cents"], 2933 + 2973 + 1496 + 2648)
        orders = self.client.call("get_user_orders", {"user_id": 4})["data"]["orders"]
        self.assertEqual(orders[1], {"date": "1997-01-18", "cds": 2, "cents": 2973})
        preferences = self.client.call("get_user_preferences", {"user_id": 4})["data"]
        self.assertEqual((preferences["usual_cds"], preferences["usual_month"]), (2, 1))

    def test_unknown_method(self):
        reply = self.client.call("get_user_shoes", {"user_id": 4})
        self.assertEqual((reply["status"], reply["code"]), ("error", "UNKNOWN_METHOD"))
        self.assertIn("get_user_shoes", reply["message"])

    def test_bad_parameters(self):
        for params in [{}, {"user_id": "four"}, {"user_id": -1}, [], None]:
            reply = self.client.call("get_user_info", params)
            self.assertEqual((reply["status"], reply["code"]), ("error", "INVALID_PARAMS"), params)
        reply = self.client.call("get_user_info", {"user_id": 1})
        self.assertEqual((reply["status"], reply["code"]), ("error", "USER_NOT_FOUND"))

    def test_what_is_no_request(self):
        for body in ["", "{", "[]", '{"params": {}}']:
            (reply,) = self.client.wait(self.client.send(body))
            self.assertEqual((reply["status"], reply["code"]), ("error", "UNDECODABLE"), body)

    def test_several_calls_in_flight(self):
        calls = {
            method: self.client.begin(method, {"user_id": 4})
            for method in [
                "get_user_info",
                "get_user_profile",
                "get_user_orders",
                "get_user_preferences",
                "get_user_shoes",
            ]
        }
        # Awaited in another order than they were begun in.
        backwards = dict(reversed(calls.items()))
        for method, reply in zip(backwards, self.client.wait(*backwards.values())):
            expected = "error" if method == "get_user_shoes" else "success"
            self.assertEqual(reply["status"], expected, method)
            if expected == "success":
                self.assertEqual(reply["data"]["user_id"], 4)

    def test_a_batch(self):
        users = [4, 21, 50, 71, 86, 1, 2, 3] * 25
        calls = [self.client.begin("get_user_info", {"user_id": user}) for user in users]
        replies = self.client.wait(*calls)
        self.assertEqual(len(replies), len(users))
        for user, reply in zip(users, replies):
            if reply["status"] == "success":
                self.assertEqual(reply["data"]["user_id"], user)
            else:
                self.assertEqual((reply["code"], user < 4), ("USER_NOT_FOUND", True))
        self.assertEqual(sum(reply["status"] == "error" for reply in replies), 75)


if __name__ == "__main__":
    unittest.main()
