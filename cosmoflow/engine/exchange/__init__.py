"""The exchange: how tasks on Ray hand parts of their results to one another.

A task writes its parts to one file, a *parcel*, in a scratch folder of its node. A reader takes its
own part of each parcel: on the same node it maps the file, from other nodes it gets the bytes from
an actor that serves the node's folder. If scratch is in a bucket, a parcel is an object, of which
readers on any node take ranges. The driver knows only the node of a parcel, so nothing that it
holds grows with the number of parts.

- :mod:`.parcels`: the file format, with a checksum for each part.
- :mod:`.scratch`: the folder of a run, on each node, and what a killed run has left.
- :mod:`.bucket`: the same in a bucket.
- :mod:`.servers`: the actors that serve parcels to other nodes.
- :mod:`.agenda`: which tasks can run, which parcels are needed again, which can go.
- :mod:`.crews`: they submit tasks to Ray and collect their results, for a node or for some.
- :mod:`.teams`: which crew has which nodes, and gets how many tasks.
- :mod:`.work`: what a worker does with a task.
- :mod:`.runner`: the driver's loop on Ray.
"""
