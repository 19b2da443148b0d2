import time
def test_probe(run, home, heard):
    t=time.time(); s=run(); print("first", time.time()-t, s["tasks"])
    t=time.time(); s=run(); print("second", time.time()-t, s["tasks"])
    t=time.time(); s=run(("rnn","gru")); print("third", time.time()-t, s["tasks"])
    print([n for n in heard if n.warning])
def test_finished(finished): print(finished.summary["seconds"], finished.summary["tasks"])
