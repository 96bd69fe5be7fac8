"""Share a dataset and get one: to and from the Hugging Face Hub, or a plain folder.

push("shards", "me/my-128k", private=True)       # -> "hf://datasets/me/my-128k"
pull("me/my-128k", "shards", only=("extend",))   # -> the manifest of the new folder
lrdata.open_dataset("hf://datasets/me/my-128k")  # shards come when their first row is read

places       what names stand for, and what can be done with it      opening  a name -> a place
client       the Hub's own client: that it is quiet, and what its errors mean
repository   a dataset repository of the Hub      plain   a folder
pushing, pulling, streaming
"""

from lrdata.hub.pulling import pull as pull
from lrdata.hub.pushing import push as push
