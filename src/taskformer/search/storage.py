"""Where studies are kept, a search's or a sweep's, and which processes still work on them."""

import os
import time
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from taskformer.errors import ConfigError

#: Seconds that SQLite waits for another process's write.
LOCK_TIMEOUT = 60
#: Attempts at opening a storage, which fail while another process creates it.
ATTEMPTS = 8


def open_storage(storage: str) -> BaseStorage:
    """Open a storage of studies.

    Args:
        storage: Any URL of Optuna's, e.g. of a database on a server, or a path: of a journal, which works on network
            disks, if it ends in ``.journal`` or ``.log``, else of an SQLite file.

    Raises:
        ConfigError: If it cannot be opened.
    """
    if storage.endswith((".journal", ".log")):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        # Optuna takes the lock of a killed process away only where the path leads to the journal from anywhere.
        return JournalStorage(JournalFileBackend(str(Path(storage).absolute())))
    if "://" not in storage:
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{storage}"
    options = {"connect_args": {"timeout": LOCK_TIMEOUT}} if storage.startswith("sqlite") else {}
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(storage, engine_kwargs=options)
        except (IntegrityError, OperationalError) as error:  # another process creates the same tables just now
            reason: Exception = error
            time.sleep(0.1 * attempt)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            reason = error
            break
    msg = f"cannot open the storage {storage!r}: {str(reason).splitlines()[0]}"
    raise ConfigError(msg) from reason


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs for someone else
        return True
    return True
