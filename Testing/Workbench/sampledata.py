"""Stand-in for Slicer's module SampleData: modules register samples, the File menu of the workbench offers them."""

import logging
import os
import urllib.parse

import slicer


class SampleDataSource:
    """One sample: one or several files, or a function that makes it."""

    def __init__(
        self,
        sampleName=None,
        sampleDescription=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        checksums=None,
        loadFiles=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFileProperties=None,
        loadFileType=None,
    ):
        loadFileTypes = loadFileTypes if loadFileTypes is not None else loadFileType
        if isinstance(uris, str):
            uris, fileNames, nodeNames = [uris], [fileNames], [nodeNames]
            loadFiles, loadFileTypes, checksums = [loadFiles], [loadFileTypes], [checksums]
        elif isinstance(uris, (list, tuple)):
            empty = [None] * len(uris)
            nodeNames, loadFiles, checksums = nodeNames or empty, loadFiles or empty, checksums or empty
            if loadFileTypes is None or isinstance(loadFileTypes, str):
                loadFileTypes = [loadFileTypes] * len(uris)
        self.sampleName, self.sampleDescription = sampleName, sampleDescription or sampleName
        self.uris, self.fileNames, self.nodeNames, self.checksums = uris, fileNames, nodeNames, checksums
        self.loadFiles, self.loadFileTypes = loadFiles, loadFileTypes
        self.customDownloader, self.thumbnailFileName = customDownloader, thumbnailFileName
        self.loadFileProperties = loadFileProperties or {}
        if len({len(field) for field in (uris, fileNames, nodeNames, loadFiles, loadFileTypes, checksums)}) != 1:
            raise ValueError("All fields of sample data source must have the same length")

    def __eq__(self, other):
        return vars(self) == vars(other)

    __hash__ = None


class SampleDataLogic:
    """Registers samples and loads them."""

    @staticmethod
    def _sources() -> dict:
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        return slicer.modules.sampleDataSources

    @staticmethod
    def registerCustomSampleDataCategory(category, title):
        if not hasattr(slicer.modules, "sampleDataSourceCategories"):
            slicer.modules.sampleDataSourceCategories = {}
        slicer.modules.sampleDataSourceCategories.setdefault(category, {})["title"] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
        loadFileType=None,
    ):
        source = SampleDataSource(
            sampleName=sampleName,
            uris=uris,
            fileNames=fileNames,
            nodeNames=nodeNames,
            customDownloader=customDownloader,
            thumbnailFileName=thumbnailFileName,
            loadFileTypes=loadFileTypes,
            loadFiles=loadFiles,
            loadFileProperties=loadFileProperties,
            checksums=checksums,
            loadFileType=loadFileType,
        )
        sources = SampleDataLogic._sources().setdefault(category, [])
        if source not in sources:
            sources.append(source)

    @staticmethod
    def categoryTitle(category):
        return getattr(slicer.modules, "sampleDataSourceCategories", {}).get(category, {}).get("title", category)

    @staticmethod
    def sampleDataSourcesByCategory(category=None):
        sources = SampleDataLogic._sources()
        return sources if category is None else sources.get(category, [])

    def __init__(self, logMessage=None):
        if logMessage:
            self.logMessage = logMessage

    def logMessage(self, message, logLevel=logging.DEBUG):
        logging.log(logLevel, message)

    def sourceForSampleName(self, sampleName):
        sources = (source for sources in self._sources().values() for source in sources)
        return next((source for source in sources if source.sampleName == sampleName), None)

    def downloadSamples(self, sampleName):
        source = self.sourceForSampleName(sampleName)
        return self.downloadFromSource(source) if source else []

    def downloadSample(self, sampleName):
        return self.downloadSamples(sampleName)[0]

    def downloadFileIntoCache(self, uri, name, checksum=None, forceDownload=False):
        folder = slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory()
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name)
        if forceDownload and os.path.exists(path):
            os.remove(path)
        slicer.util.downloadFile(uri, path, checksum)
        return path

    def downloadFromSource(self, source, maximumAttemptsCount=3, forceDownload=False):
        nodes, paths = [], []
        defaults = all(name is None for name in source.nodeNames)
        fields = (source.uris, source.fileNames, source.nodeNames, source.checksums, source.loadFiles)
        for uri, file_name, node_name, checksum, load, kind in zip(*fields, source.loadFileTypes, strict=True):
            file_name = file_name or os.path.basename(urllib.parse.urlparse(uri).path)
            if node_name is None and load is not False and defaults:
                node_name = os.path.splitext(file_name)[0]
            path = self.downloadFileIntoCache(uri, file_name, checksum, forceDownload)
            if node_name is None or load is False:
                paths.append(path)
                continue
            properties = {**source.loadFileProperties, "name": node_name}
            nodes.append(slicer.util.loadNodeFromFile(path, kind, properties))
        return nodes or paths


def downloadSample(sampleName):
    return SampleDataLogic().downloadSample(sampleName)


def downloadSamples(sampleName):
    return SampleDataLogic().downloadSamples(sampleName)


def load(source: SampleDataSource):
    """What a click on a sample in Slicer's Sample Data module does."""
    return (source.customDownloader or SampleDataLogic().downloadFromSource)(source)
