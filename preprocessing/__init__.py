"""From raw video and annotations to shards: annotations → hierarchy → plan → chunks → samples → shards."""
