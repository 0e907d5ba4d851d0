"""What keeps an eye on the other processes of a training, and ends this one when one of them has died."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


class Watch(threading.Thread):
    """Ends this process when one that trains with it has died: it would wait for the dead one, on a GPU without end.

    Takes the place of Lightning's own watch, which ends everything without a word, also while all are ending in order.

    Args:
        others: The processes that this one has started; none: watch the one that started this.
        folder: The run's folder, for the hint how to go on.
    """

    def __init__(self, others: list[subprocess.Popen[bytes]], folder: Path) -> None:
        super().__init__(daemon=True, name="taskformer-watch")
        self.others = others
        self.folder = folder
        self.is_child = not others
        self._parent = os.getppid()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look twice a second."""
        while not self._stopped.wait(0.5):
            if self.is_child:
                self._look_at_parent()
            else:
                self._look_at_others()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()

    def end_others(self) -> None:
        """End the processes that this one has started."""
        self.stop()
        for process in self.others:
            process.kill()

    def _look_at_parent(self) -> None:
        # If it has ended as it should, so does this one about now.
        if os.getppid() != self._parent and not self._stopped.wait(2):
            if os.environ.get("LOCAL_RANK") == "1":  # one of those left
                say(f"the first process of the training died, the others end; {self._hint}")
            os._exit(1)

    def _look_at_others(self) -> None:
        for rank, process in enumerate(self.others, start=1):
            status = process.poll()
            if status:  # one with a status of its own has said why
                if status < 0:
                    name = signal.Signals(-status).name
                    say(f"process {rank} of the training was killed ({name}), the others end; {self._hint}")
                self.end_others()
                sys.stdout.flush()
                os._exit(status if status > 0 else 128 - status)

    @property
    def _hint(self) -> str:
        return f"go on with `taskformer fit --resume {self.folder}`"


def say(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"taskformer: {text}\n")
    sys.stderr.flush()
